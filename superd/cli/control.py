"""`superd stop`, `reload`, `reopen`, `disable`, `enable`, `log-level`: a daemon is told what to do.

Runs in the command line. Finds the daemon by the lock on its pid file, never by a number alone.
Raises NotPermitted where it is another user's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from superd.cli.files import daemon_of, no_service
from superd.config.model import Settings
from superd.errors import ExitCode, NotPermitted, SuperdError
from superd.master.control import Line
from superd.master.pidfile import holder

LOOK = 0.02  # seconds between two questions how a reload goes
SILENCE = 30.0  # seconds without an answer, until nobody is taken to answer any more
MARGIN = 10.0  # seconds that a daemon may take beyond its drain-timeout


def stop(file: Path | None) -> int:
    """Stop the daemon and wait until it is gone."""
    settings = daemon_of(file)
    pid = holder_of(settings)
    if pid is None:
        raise SuperdError(f"no superd runs with the pid file {settings.daemon.pid_file}")
    if pid == 0:
        raise SuperdError("superd runs in another container, where it can be stopped")
    descriptor = _pidfd(pid)
    if descriptor is None or holder_of(settings) != pid:
        return int(ExitCode.OK)  # it has gone by itself
    with contextlib.suppress(SuperdError):  # it may have no control socket; and the signal counts
        asked(settings, "forget-sockets")
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    except PermissionError:
        raise NotPermitted(f"process {pid} belongs to another user") from None
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll((settings.daemon.drain_timeout + MARGIN) * 1000):
        raise SuperdError(f"process {pid} was told to stop and is still there; see its log")
    return int(ExitCode.OK)


def reload(file: Path | None) -> int:
    """Have the daemon read its configuration anew; return once it has gone over to it, or not."""
    settings = daemon_of(file)  # its mistakes are the daemon's to tell
    answer = _outcome(settings, "reload")
    return _told_with_changes(answer)


def enable(file: Path | None, service: str, *, enabled: bool) -> int:
    """Have a service served, or not, whatever its entry says; return once it is so, or not."""
    settings = daemon_of(file)
    running = {one["name"] for one in asked(settings, "status")["services"]}
    if service not in running | settings.services.keys():
        raise no_service(service, running | settings.services.keys())
    started = asked(settings, "enable", service=service, enabled=enabled)
    return _told(_followed(settings, "reload", started["number"]))


def upgrade(file: Path | None) -> int:
    """Have the daemon go over to the program that is installed now; return once it has, or not."""
    settings = daemon_of(file)
    answer = _outcome(settings, "upgrade")
    if "version" in answer:
        print(f"superd {answer['before']} -> {answer['version']}")
        if answer["state"] == "failed":
            print("superd: the workers stay those of before:", file=sys.stderr)
    return _told_with_changes(answer)


def _outcome(settings: Settings, request: str) -> Any:
    """Ask for a change that takes a while; return how it ended."""
    return _followed(settings, request, asked(settings, request)["number"])


def _followed(settings: Settings, request: str, number: int) -> Any:
    """Wait until a change is over, and return how it ended."""
    answered = time.monotonic()
    while True:
        try:
            answer = asked(settings, f"{request}-state", number=number)
        except SuperdError:  # a program that has just taken over on a busy machine needs a while
            if holder_of(settings) is None or time.monotonic() - answered > SILENCE:
                raise
        else:
            answered = time.monotonic()
            if answer["state"] in ("done", "failed"):
                return answer
        select.select([], [], [], LOOK)


def _told(answer: Any) -> int:
    """Print how a change ended; return the exit code."""
    for notice in answer["notices"]:
        print(f"superd: {notice}", file=sys.stderr)
    for problem in answer["problems"]:
        print(problem, file=sys.stderr)
    return int(answer["code"])


def _told_with_changes(answer: Any) -> int:
    """The same, and what has become of each service."""
    code = _told(answer)
    for name, change in answer["changes"].items() if answer["state"] == "done" else ():
        print(f"{name}: {change}")
    return code


def reopen(file: Path | None) -> int:
    """Have the daemon open its log files anew."""
    asked(daemon_of(file), "reopen")
    return int(ExitCode.OK)


def log_level(file: Path | None, level: str | None) -> int:
    """Show the least severe level that is logged, or change it."""
    answer = asked(daemon_of(file), "log-level", level=level)
    if level is None:
        print(answer["level"])
    return int(ExitCode.OK)


@contextlib.contextmanager
def connected(settings: Settings) -> Iterator[Line]:
    """Provide a line to the daemon; SuperdError where it does not run."""
    assert settings.daemon.control_socket is not None
    try:
        line = Line(settings.daemon.control_socket)
    except NotPermitted:
        raise
    except SuperdError:
        if holder_of(settings) is not None:
            raise
        raise SuperdError("it is not running") from None
    with line:
        yield line


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


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def holder_of(settings: Settings) -> int | None:
    """Return the process that runs with these settings; 0 where it is in another container."""
    path = settings.daemon.pid_file
    return None if path is None else holder(path)
