"""Runs something in a process that is thrown away, and brings back its result as JSON.

Runs in the command line and the master; what may raise, hang, exit or crash runs in the child.
Never raises for what the child did: the outcome says it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from superd.errors import reason
from superd.worker.worker import reset_signals

PATIENCE = 10.0  # seconds until a child is ended


@dataclass(frozen=True)
class Outcome:
    """What a child returned, or in `failure` why it did not."""

    result: Any = None
    failure: str = ""


def run_isolated(jobs: Mapping[str, Callable[[], Any]]) -> dict[str, Outcome]:
    """Run each job in a child of its own, all at once; return their outcomes by name."""
    children = {name: _fork(job) for name, job in jobs.items()}
    deadline = time.monotonic() + PATIENCE
    outcomes = {}
    for name, (pid, reader) in children.items():
        data = _read(reader, deadline)
        os.close(reader)
        if data is None:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        outcomes[name] = _outcome(data, os.waitstatus_to_exitcode(status))
    return outcomes


def _fork(job: Callable[[], Any]) -> tuple[int, int]:
    reader, writer = os.pipe()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid == 0:
        _run(job, writer)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.close(writer)
    return pid, reader


def _run(job: Callable[[], Any], writer: int) -> NoReturn:
    try:
        reset_signals()
        os.setpgid(0, 0)
        data = json.dumps({"result": job()})
    except BaseException as error:  # noqa: BLE001  whatever it is, it is the outcome
        data = json.dumps({"failure": reason(error)})
    try:
        with open(writer, "w", encoding="ascii") as pipe:
            pipe.write(data)
        sys.stdout.flush()
    finally:
        os._exit(0)


def _read(reader: int, deadline: float) -> bytes | None:
    """Return all that the child writes; None where it takes too long."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    parts: list[bytes] = []
    while poll.poll(max(0, deadline - time.monotonic()) * 1000):
        part = os.read(reader, 65536)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return None


def _outcome(data: bytes | None, code: int) -> Outcome:
    if data is None:
        return Outcome(failure=f"it took longer than {PATIENCE:.0f} s")
    try:
        return Outcome(**json.loads(data))
    except ValueError:
        ended = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return Outcome(failure=f"its process ended {ended}")
