"""`superd check`: a configuration is checked without serving.

Runs in the command line, as any user; plugins run in processes that are thrown away. Only root has
them prepare, too: another user may not read what superd, which root starts, will. Never binds, nor
opens a log. Raises ConfigurationError.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from superd.cli.files import configuration_file
from superd.config.loading import Configuration, load
from superd.config.values import LOG_SINKS
from superd.errors import ConfigurationError, ExitCode, Problem
from superd.master.plan.preflight import preflight
from superd.plugin.registry import installed

OK = "configuration OK"


def check(files: Sequence[Path], file: Path | None = None) -> int:
    """Check each file and raise all problems of all of them at once."""
    problems: list[Problem] = []
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
    if problems:
        raise ConfigurationError(problems)
    print(OK)
    return int(ExitCode.OK)


def _logs_without_directory(configuration: Configuration) -> Iterator[Problem]:
    """Tell of files that cannot be logged to; where this user may not look, nothing is known."""
    settings = configuration.partial
    keys = {"log": settings.daemon.log, "record-log": settings.daemon.record_log}
    for key, names in keys.items():
        for number, name in enumerate(names):
            file = settings.file.parent / name
            code = 0 if name in LOG_SINKS else _missing(file.parent)
            if code:
                message = f"cannot log to {file}: {os.strerror(code)}"
                yield configuration.daemon_problem(key, number, message)


def _missing(directory: Path) -> int:
    """Return the error number with which no file can be made in a directory that is none."""
    try:
        return 0 if stat.S_ISDIR(directory.stat().st_mode) else errno.ENOTDIR
    except (FileNotFoundError, NotADirectoryError) as error:
        return error.errno or 0
    except OSError:
        return 0
