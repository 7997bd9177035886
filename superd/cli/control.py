"""`superd stop`, `reload` and `status`: talking to a daemon that runs.

Runs in the command line. Finds the daemon by the lock on its pid file, never by a number alone.
Raises NotPermitted where it is another user's.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from superd.cli.files import read
from superd.config.model import Settings
from superd.errors import ExitCode, NotPermitted, SuperdError
from superd.master.control import ask
from superd.master.pidfile import holder
from superd.observe.rows import table

LOOK = 0.02  # seconds between two questions how a reload goes
SILENCE = 30.0  # seconds without an answer, until nobody is taken to answer any more
MARGIN = 10.0  # seconds that a daemon may take beyond its drain-timeout


def stop(file: Path | None) -> int:
    """Stop the daemon and wait until it is gone."""
    settings = read(file).partial  # mistakes made since the start do not matter here
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
    settings = read(file).partial  # its mistakes are the daemon's to tell
    return _told(_outcome(settings, "reload"))


def upgrade(file: Path | None) -> int:
    """Have the daemon go over to the program that is installed now; return once it has, or not."""
    settings = read(file).partial
    answer = _outcome(settings, "upgrade")
    if "version" in answer:
        print(f"superd {answer['before']} -> {answer['version']}")
        if answer["state"] == "failed":
            print("superd: the workers stay those of before:", file=sys.stderr)
    return _told(answer)


def _outcome(settings: Settings, request: str) -> Any:
    """Ask for a change that takes a while; return how it ended."""
    number = asked(settings, request)["number"]
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
    for name, change in answer["changes"].items() if answer["state"] == "done" else ():
        print(f"{name}: {change}")
    return int(answer["code"])


def asked(settings: Settings, request: str, **arguments: object) -> Any:
    """Return the daemon's answer; SuperdError where it says no, or does not run."""
    assert settings.daemon.control_socket is not None
    try:
        text = f"{request} {json.dumps(arguments)}" if arguments else request
        answer = ask(settings.daemon.control_socket, text)
    except NotPermitted:
        raise
    except SuperdError:
        if holder_of(settings) is not None:
            raise
        raise SuperdError("it is not running") from None
    if "error" in answer:
        raise SuperdError(answer["error"])
    return answer


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def holder_of(settings: Settings) -> int | None:
    """Return the process that runs with these settings; 0 where it is in another container."""
    path = settings.daemon.pid_file
    return None if path is None else holder(path)


def status(file: Path | None, form: str) -> int:
    """Show what the daemon does, as "text", "json" or "prometheus"; exit 3 where none runs."""
    settings = read(file).partial  # mistakes made since the start do not matter here
    assert settings.daemon.control_socket is not None
    try:
        request = "metrics" if form == "prometheus" else "status"
        answer = ask(settings.daemon.control_socket, request)
    except NotPermitted:
        raise
    except SuperdError:
        if holder_of(settings) is not None:
            raise
        if form == "prometheus":
            print("superd is not running", file=sys.stderr)
        else:
            print('{"state": "stopped"}' if form == "json" else "superd is not running")
        return int(ExitCode.NOT_RUNNING)
    if "error" in answer:
        raise SuperdError(answer["error"])  # of a daemon that is older than this command
    if form == "prometheus":
        print(answer["text"], end="")
    else:
        print(json.dumps(answer, indent=2) if form == "json" else "\n".join(_lines(answer)))
    return int(ExitCode.OK)


def _lines(answer: dict[str, Any]) -> list[str]:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(answer["since"]))
    lines = [
        f"superd {answer['version']} is {answer['state']} since {since}, process {answer['pid']}",
        f"configuration {answer['configuration']}",
        "",
    ]
    lines += [
        f"worker {worker['pid'] or '-'}  pool {worker['pool']}  {worker['state']}"
        for worker in answer["workers"]
    ]
    if answer["resolver"]:
        lines.append(f"resolver {answer['resolver']}")
    lines.append("")
    names = [service["name"] for service in answer["services"]]
    width = max(map(len, names), default=0)
    for service in answer["services"]:
        counts = {key: value for key, value in service["counts"].items() if value}
        told = ", ".join(f"{key} {value}" for key, value in counts.items()) or "nothing yet"
        lines.append(f"{service['name']:<{width}}  {' '.join(service['listen'])}")
        lines.append(f"{'':<{width}}  {told}")
        lines += [f"{'':<{width}}  {line}" for line in table(service["rows"])]
    lines += [f"{name:<{width}}  not served: {why}" for name, why in answer["broken"].items()]
    if answer["bans"]:
        lines += ["", f"{answer['bans']} bans; `superd bans` lists them"]
    if answer["log-failures"]:
        lines += ["", f"{answer['log-failures']} log records were lost"]
    return lines
