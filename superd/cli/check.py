"""`superd check`: checks configuration files without serving.

Runs in the command line, as any user; plugins run in child processes. Only root has plugins check
what they would open, as another user may lack rights that superd has once root starts it. Binds
nothing, opens no log and creates no file. Raises ConfigurationError.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from superd.cli.files import configuration_file
from superd.config.loading import Configuration, load
from superd.config.values import LOG_SINKS
from superd.errors import ConfigurationError, ExitCode, Problem
from superd.listen.names import look_up, names_in
from superd.listen.privileges import bind_remedy
from superd.master.plan.preflight import preflight
from superd.plugin.registry import installed

OK = "configuration OK"


def check(files: Sequence[Path], file: Path | None = None) -> int:
    """Check each file; raise the problems of all files together."""
    problems: list[Problem] = []
    notices: list[str] = []
    plugins = installed()
    named = [*files, *([file] if file else [])]
    for one in named or [configuration_file(None)]:
        try:
            configuration = load(one)
        except ConfigurationError as error:
            problems += error.problems
            continue
        prepare = os.geteuid() == 0 and not configuration.problems
        verdict = preflight(configuration, plugins, prepare=prepare, is_check=True)
        problems += verdict.all_problems(configuration)
        problems += _logs_without_directory(configuration)
        notices += [f"as this user: {one}" for one in _privileged_ports(configuration)]
        wrong, unknown = _names(configuration)
        problems += wrong
        notices += map(str, unknown)
    if problems:
        raise ConfigurationError(problems)
    for notice in dict.fromkeys(notices):
        print(f"superd: {notice}", file=sys.stderr)
    print(OK)
    return int(ExitCode.OK)


def _names(configuration: Configuration) -> tuple[list[Problem], list[Problem]]:
    """Return a problem for each name to listen on that does not exist, and a notice for each that
    cannot be looked up now.
    """
    services = configuration.partial.enabled
    answers = look_up(names_in(services))
    found: tuple[list[Problem], list[Problem]] = ([], [])
    for name, service in services.items():
        for address in service.listen:
            answer = answers.get(address.host)
            if answer is not None and not answer.hosts:
                problem = configuration.address_problem(name, address, answer.failure)
                found[answer.is_temporary].append(problem)
    return found


def _privileged_ports(configuration: Configuration) -> Iterator[Problem]:
    """Yield a notice for each address that this user cannot bind.

    It is no mistake: another user may run superd, and systemd may pass it the bound socket.
    """
    if "LISTEN_FDS" in os.environ:
        return
    for name, service in configuration.partial.enabled.items():
        ranges = set()
        for address in service.listen:
            range_ = (address.transport, address.host)
            if (address.is_from_range and range_ in ranges) or not (remedy := bind_remedy(address)):
                continue
            if address.is_from_range:
                ranges.add(range_)  # one notice for all of its ports
            yield configuration.address_problem(name, address, remedy)


def _logs_without_directory(configuration: Configuration) -> Iterator[Problem]:
    """Yield a problem for each log file whose directory is missing, as far as this user may see."""
    settings = configuration.partial
    keys = {"log": settings.daemon.log, "record-log": settings.daemon.record_log}
    for key, names in keys.items():
        for number, name in enumerate(names):
            file = settings.file.parent / name
            code = 0 if name in LOG_SINKS else _errno_of_missing(file.parent)
            if code:
                message = f"cannot log to {file}: {os.strerror(code)}"
                yield configuration.daemon_problem(key, number, message)


def _errno_of_missing(directory: Path) -> int:
    """Return the error number of creating a file there if it is not a directory; 0 if it is."""
    try:
        return 0 if stat.S_ISDIR(directory.stat().st_mode) else errno.ENOTDIR
    except (FileNotFoundError, NotADirectoryError) as error:
        return error.errno or 0
    except OSError:
        return 0
