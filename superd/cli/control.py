"""`superd stop`, `reload`, `upgrade`, `reopen`, `disable`, `enable` and `log-level`: they control
the daemon.

Runs in the command line. Raises SuperdError where the daemon does not run or refuses, NotPermitted
where it belongs to another user.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from superd.cli.daemon import (
    ControlConnection,
    ServesAnotherFile,
    ask_daemon,
    connected,
    holder_of,
    process_of,
)
from superd.cli.files import DaemonFiles, daemon_files, no_such_service, services_in
from superd.errors import ExitCode, NotPermitted, SuperdError

POLL_INTERVAL = 0.02  # seconds between two requests for the state of a change
SILENCE_TIMEOUT = 30.0  # seconds without an answer, after which the daemon counts as hung
STOP_MARGIN = 10.0  # seconds that a daemon may take to stop, beyond its drain-timeout
QUIET_STOP = 1.0  # seconds after which `superd stop` prints what the daemon waits for


def stop(file: Path | None) -> int:
    """Stop the daemon and wait for its end."""
    files = daemon_files(file)
    pid = process_of(files)
    if pid is None:
        raise SuperdError(f"no superd runs with the pid file {files.pid_file}")
    if pid == 0:
        raise SuperdError("superd runs in another container, where it can be stopped")
    descriptor = _pidfd(pid)
    if descriptor is None or process_of(files) != pid:
        return int(ExitCode.OK)  # it ended meanwhile
    try:
        ask_daemon(files, "forget-sockets")
    except ServesAnotherFile:
        raise
    except SuperdError:
        pass  # it may have no control socket; the signal stops it
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    except PermissionError:
        raise NotPermitted(f"process {pid} belongs to another user") from None
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if poll.poll(QUIET_STOP * 1000):
        return int(ExitCode.OK)
    with contextlib.suppress(SuperdError):
        services = ask_daemon(files, "status")["services"]
        number = sum(service["counts"]["active"] for service in services)
        waiting = f"waiting for {number} connection{'' if number == 1 else 's'}"
        print(f"superd: {waiting}, {files.drain_timeout:g} s at most", file=sys.stderr)
    if not poll.poll((files.drain_timeout + STOP_MARGIN) * 1000):
        raise SuperdError(f"process {pid} has not stopped after TERM; see its log")
    return int(ExitCode.OK)


def reload(file: Path | None) -> int:
    """Have the daemon reload its configuration; return once that succeeded or failed."""
    return _report_with_services(_changed(daemon_files(file), "reload"))


def upgrade(file: Path | None) -> int:
    """Have the daemon execute the installed program; return once that succeeded or failed."""
    answer = _changed(daemon_files(file), "upgrade")
    if "version" in answer:
        print(f"superd {answer['before']} -> {answer['version']}")
        if answer["state"] == "failed":
            print("superd: the workers of the former version keep serving:", file=sys.stderr)
    return _report_with_services(answer)


def enable(file: Path | None, service: str, *, enabled: bool) -> int:
    """Enable or disable a service, whatever its entry says; return once that is done or failed."""
    files = daemon_files(file)
    known = {one["name"] for one in ask_daemon(files, "status")["services"]}
    if service not in known:
        known |= services_in(file)
        if service not in known:
            raise no_such_service(service, known)
    code = _report(_changed(files, "enable", service=service, enabled=enabled))
    if code == ExitCode.OK:
        print(f"{service}: {'enabled' if enabled else 'disabled'}")
    return code


def _changed(files: DaemonFiles, request: str, **arguments: object) -> Any:
    """Request a change, wait for its end and return the outcome.

    One connection serves from the request to the outcome. Only an upgrade ends it: the master then
    executes another program, which may need a while on a busy machine before it answers.
    """
    state = "upgrade-state" if request == "upgrade" else "reload-state"
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(connected(files))
        number = first.request(request, **arguments)["number"]
        connection: ControlConnection | None = first
        last_answer = time.monotonic()
        while True:
            try:
                if connection is None:
                    connection = stack.enter_context(connected(files))
                answer = connection.request(state, number=number)
            except SuperdError:
                if holder_of(files) is None or time.monotonic() - last_answer > SILENCE_TIMEOUT:
                    raise
                stack.close()
                connection = None
            else:
                last_answer = time.monotonic()
                if answer["state"] in ("done", "failed"):
                    return answer
                if answer["state"] == "ready":  # the master waits until no client is connected
                    stack.close()
                    connection = None
            time.sleep(POLL_INTERVAL)


def _report(answer: Any) -> int:
    """Print the notices and problems of a change; return the exit code."""
    for notice in answer["notices"]:
        print(f"superd: {notice}", file=sys.stderr)
    for problem in answer["problems"]:
        print(problem, file=sys.stderr)
    return int(answer["code"])


def _report_with_services(answer: Any) -> int:
    """Print the same, each service that has changed, and how many have not."""
    code = _report(answer)
    changes = answer["changes"] if answer["state"] == "done" else {}
    unchanged = sum(change == "unchanged" for change in changes.values())
    for name, change in changes.items():
        if change != "unchanged":
            print(f"{name}: {change}")
    if unchanged:
        print(f"unchanged: {unchanged} service{'s' if unchanged > 1 else ''}")
    return code


def reopen(file: Path | None) -> int:
    """Have the daemon reopen its log files and those of plugins."""
    ask_daemon(daemon_files(file), "reopen")
    return int(ExitCode.OK)


def log_level(file: Path | None, level: str | None) -> int:
    """Show the least severe level that is logged, or change it."""
    answer = ask_daemon(daemon_files(file), "log-level", level=level)
    if level is None:
        print(answer["level"])
    return int(ExitCode.OK)


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
