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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from superd.cli.files import configuration_file
from superd.config.loading import Configuration, load
from superd.config.values import LOG_SINKS
from superd.errors import ConfigurationError, ExitCode, Problem
from superd.listen.names import look_up, names_in
from superd.listen.privileges import bind_remedy
from superd.master.logs.sinks import JOURNAL_SOCKET, SYSLOG_SOCKET
from superd.master.plan.plan import unused_rules_notice
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
        problems += _logs_that_cannot_be_opened(configuration)
        notices += [f"as this user: {one}" for one in _privileged_ports(configuration)]
        wrong, unknown = _names(configuration)
        problems += wrong
        notices += map(str, [*unknown, *_absent_logs(configuration)])
        notices += unused_rules_notice(configuration.partial.enabled)
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


def _logs_that_cannot_be_opened(configuration: Configuration) -> Iterator[Problem]:
    """Yield a problem for each log file that cannot be opened, as far as this user may see, and for
    syslog and the journal if none of the logs can.
    """
    for key, names in _logs(configuration).items():
        absent = {name: why for name in names if (why := _absent(name))}
        for number, name in enumerate(names):
            file = configuration.partial.file.parent / name
            why = "" if name in LOG_SINKS else _why_not_writable(file)
            if why:
                yield configuration.daemon_problem(key, number, f"cannot log to {file}: {why}")
            elif name in absent and len(absent) == len(names):
                message = f"cannot log to {name}: {absent[name]}; name another sink, too"
                yield configuration.daemon_problem(key, number, message)


def _absent_logs(configuration: Configuration) -> Iterator[Problem]:
    """Yield a notice for syslog or the journal where it does not run; it may start later."""
    for key, names in _logs(configuration).items():
        for number, name in enumerate(names):
            if why := _absent(name):
                yield configuration.daemon_problem(key, number, f"cannot log to {name}: {why}")


def _logs(configuration: Configuration) -> Mapping[str, Sequence[str]]:
    daemon = configuration.partial.daemon
    return {"log": daemon.log, "record-log": daemon.record_log}


def _absent(name: str) -> str:
    """Return why no process takes lines for syslog or the journal; "" for another log."""
    path = {"syslog": SYSLOG_SOCKET, "journal": JOURNAL_SOCKET}.get(name)
    return "" if path is None or os.path.exists(path) else f"{os.strerror(errno.ENOENT)}: {path}"


def _why_not_writable(file: Path) -> str:
    """Return why a file cannot be opened for writing or created, as far as this user may see."""
    try:
        if not stat.S_ISDIR(file.parent.stat().st_mode):
            return os.strerror(errno.ENOTDIR)
        if file.is_dir():
            return os.strerror(errno.EISDIR)
    except (FileNotFoundError, NotADirectoryError) as error:
        return os.strerror(error.errno or 0)
    except OSError:
        return ""
    place = file if file.exists() else file.parent
    is_refused = os.geteuid() == 0 and not os.access(place, os.W_OK)
    return f"{place} cannot be written, not even by root" if is_refused else ""
