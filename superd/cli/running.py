"""The daemon that runs with a configuration: whether there is one, and what it answers.

Runs in the command line. Finds it by the lock on its pid file and by its control socket, never by a
number alone. Never asks a daemon anything that serves another file, though it may have the same
name, and so the same files in /run. Raises NotPermitted where it is another user's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from superd.cli.files import SYSTEM_DIRECTORY, daemon_of
from superd.config.model import Settings
from superd.errors import ExitCode, NotPermitted, SuperdError
from superd.master.control_socket import Line
from superd.master.pidfile import MASTER_TITLE, holder


class NotRunning(SuperdError):
    """No daemon runs with this configuration."""


class ServesAnother(SuperdError):
    """Where the daemon of this configuration would be is that of another."""


def running(file: Path | None) -> Settings:
    """Return the settings of the daemon that runs with a file; SuperdError where none does."""
    settings = daemon_of(file)
    with connected(settings) as line:
        outline_of(settings, line)
    return settings


@contextlib.contextmanager
def connected(settings: Settings) -> Iterator[Line]:
    """Provide a line to whatever daemon answers there; SuperdError where none does."""
    assert settings.daemon.control_socket is not None
    try:
        line = Line(settings.daemon.control_socket)
    except NotPermitted:
        raise
    except SuperdError:
        if holder_of(settings) is not None:
            raise
        raise NotRunning("it is not running") from None
    with line:
        yield line


def outline_of(settings: Settings, line: Line) -> Any:
    """Return what the daemon is in short; SuperdError where it serves another file than asked."""
    outline = line.ask("outline")
    if outline.get("error", "").startswith("there is no request"):  # of the version before
        outline = line.ask("status")
    served = without_error(outline)["configuration"]
    if not _are_same(served, settings.file):
        raise ServesAnother(f"process {outline['pid']} serves {served}, not {settings.file}")
    return outline


def asked(settings: Settings, request: str, **arguments: object) -> Any:
    """Return the daemon's answer; SuperdError where it says no, or does not run."""
    with connected(settings) as line:
        return asked_on(line, request, **arguments)


def asked_on(line: Line, request: str, **arguments: object) -> Any:
    """Return the daemon's answer to one request of several."""
    return without_error(line.ask(request, **arguments))


def without_error(answer: Any) -> Any:
    """Return an answer; SuperdError where the daemon says that it cannot."""
    if "error" not in answer:
        return answer
    error = SuperdError(answer["error"])
    error.exit_code = ExitCode(answer.get("code", ExitCode.FAILED))
    raise error


def process_of(settings: Settings) -> int | None:
    """Return the process of the daemon, also where its pid file was removed or is named anew: it
    answers all the same. 0 where it is in another container.
    """
    pid = holder_of(settings)
    if pid is None:
        with contextlib.suppress(NotRunning), connected(settings) as line:
            outline_of(settings, line)
            pid = line.pid
    return pid


def holder_of(settings: Settings) -> int | None:
    """Return the process that holds the lock on the pid file; 0 where it is in another container.

    NotPermitted where a daemon of the system serves the file.
    """
    path = settings.daemon.pid_file
    pid = None if path is None else holder(path)
    if pid is None and (other := _of_the_system(settings)):
        raise NotPermitted(f"superd runs as process {other} and belongs to another user")
    return pid


def _of_the_system(settings: Settings) -> int | None:
    """Return the process of another user's daemon, if it serves the file and is where root's are.

    Only its title tells that: the control socket hears nobody else.
    """
    with contextlib.suppress(SuperdError, OSError):
        pid = holder(SYSTEM_DIRECTORY / f"{settings.file.stem}.pid")
        if pid and Path(f"/proc/{pid}").stat().st_uid != os.geteuid():
            title = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0"))
            if _are_same(title.removeprefix(MASTER_TITLE), settings.file):
                return pid
    return None


def _are_same(one: str, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
