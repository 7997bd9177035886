"""`superd stop`, `reload`, `reopen`, `disable`, `enable`, `log-level`: a daemon is told what to do.

Runs in the command line. Raises SuperdError where it does not run or refuses, NotPermitted where it
is another user's.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from superd.cli.files import daemon_of, no_service
from superd.cli.running import (
    ServesAnother,
    asked,
    asked_on,
    connected,
    holder_of,
    outline_of,
    process_of,
    running,
)
from superd.config.model import Settings
from superd.errors import ExitCode, NotPermitted, SuperdError

LOOK = 0.02  # seconds between two questions how a reload goes
SILENCE = 30.0  # seconds without an answer, until nobody is taken to answer any more
MARGIN = 10.0  # seconds that a daemon may take beyond its drain-timeout


def stop(file: Path | None) -> int:
    """Stop the daemon and wait until it is gone."""
    settings = daemon_of(file)
    pid = process_of(settings)
    if pid is None:
        raise SuperdError(f"no superd runs with the pid file {settings.daemon.pid_file}")
    if pid == 0:
        raise SuperdError("superd runs in another container, where it can be stopped")
    descriptor = _pidfd(pid)
    if descriptor is None or process_of(settings) != pid:
        return int(ExitCode.OK)  # it has gone by itself
    try:
        with connected(settings) as line:
            outline_of(settings, line)
            asked_on(line, "forget-sockets")
    except ServesAnother:
        raise
    except SuperdError:
        pass  # it may have no control socket; and the signal counts
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
    settings = running(file)  # its mistakes are the daemon's to tell
    answer = _outcome(settings, "reload")
    return _told_with_changes(answer)


def enable(file: Path | None, service: str, *, enabled: bool) -> int:
    """Have a service served, or not, whatever its entry says; return once it is so, or not."""
    settings = running(file)
    known = {one["name"] for one in asked(settings, "status")["services"]}
    known |= settings.services.keys()
    if service not in known:
        raise no_service(service, known)
    started = asked(settings, "enable", service=service, enabled=enabled)
    return _told(_followed(settings, "reload", started["number"]))


def upgrade(file: Path | None) -> int:
    """Have the daemon go over to the program that is installed now; return once it has, or not."""
    settings = running(file)
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
    asked(running(file), "reopen")
    return int(ExitCode.OK)


def log_level(file: Path | None, level: str | None) -> int:
    """Show the least severe level that is logged, or change it."""
    answer = asked(running(file), "log-level", level=level)
    if level is None:
        print(answer["level"])
    return int(ExitCode.OK)


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
