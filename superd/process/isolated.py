"""Runs something in a process that is thrown away, and brings back its result as JSON.

Runs in the command line and the master; what may raise, hang, exit or crash runs in the child, and
whatever it leaves behind goes with its process group. Never raises for what a child did: its
outcome says it. Raises SuperdError where no process can be made.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from superd.errors import SuperdError, reason
from superd.process.forking import describe_exit, reset_signals

PATIENCE = 10.0  # seconds until a child is ended
END = b"\n"  # of a result; JSON in one line has none within


@dataclass(frozen=True)
class Outcome:
    """What a child returned, or in `failure` why it did not."""

    result: Any = None
    failure: str = ""


@dataclass
class Job:
    """Something that runs in a child; `reader` can be waited for, and is to be read then."""

    pid: int
    reader: int
    data: bytearray = field(default_factory=bytearray)
    is_late: bool = True

    def read(self) -> bool:
        """Take what has come; tell whether that is all."""
        part = os.read(self.reader, 65536)
        self.data += part
        if not part or part.endswith(END):
            self.is_late = False
        return not self.is_late

    def finish(self) -> Outcome:
        """End the child, if it has not ended, and return what came of it."""
        code = _end(self)
        return Outcome(failure="it took too long") if self.is_late else _outcome(self.data, code)


def run_isolated(
    jobs: Mapping[str, Callable[[], Any]], patience: float = PATIENCE
) -> dict[str, Outcome]:
    """Run each job in a child of its own, all at once; return their outcomes by name."""
    deadline = time.monotonic() + patience
    children: dict[str, Job] = {}
    codes = {}
    try:
        for name, job in jobs.items():
            children[name] = start_isolated(job, patience)
        _listen(children.values(), deadline)
    finally:
        for name, child in children.items():
            codes[name] = _end(child)
    return {
        name: Outcome(failure=f"it took longer than {patience:g} s")
        if child.is_late
        else _outcome(child.data, codes[name])
        for name, child in children.items()
    }


def start_isolated(job: Callable[[], Any], patience: float) -> Job:
    """Start a job in a child that ends itself after `patience` seconds."""
    sys.stdout.flush()  # the child would write what is left in there once more
    sys.stderr.flush()
    try:
        reader, writer = os.pipe()
    except OSError as error:
        raise SuperdError(f"cannot start a process: {reason(error)}") from None
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _run(job, writer, patience)
    except OSError as error:
        os.close(reader)
        raise SuperdError(f"cannot start a process: {reason(error)}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(writer)
    return Job(pid, reader)


def _run(job: Callable[[], Any], writer: int, patience: float) -> NoReturn:
    """Do the job in the child, with no terminal to read from and none of our output to disturb."""
    try:
        gc.freeze()  # what is shared with the parent stays shared
        reset_signals()
        os.setsid()
        signal.setitimer(signal.ITIMER_REAL, patience + 1)  # in case the parent has gone by then
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)
        data = json.dumps({"result": job()})
    except SuperdError as error:
        data = json.dumps({"failure": str(error)})
    except BaseException as error:  # noqa: BLE001  whatever it is, it is the outcome
        data = json.dumps({"failure": reason(error)})
    try:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with open(writer, "wb") as pipe:
            pipe.write(data.encode("ascii") + END)
    finally:
        os._exit(0)


def _listen(children: Iterable[Job], deadline: float) -> None:
    """Read until each child has told its result or closed its pipe, but no longer."""
    waiting = {child.reader: child for child in children}
    poll = select.poll()
    for reader in waiting:
        poll.register(reader, select.POLLIN)
    while waiting:
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            return
        for reader, _ in ready:
            if waiting[reader].read():
                poll.unregister(reader)
                del waiting[reader]


def _end(child: Job) -> int:
    """End a child and all that it started; return its exit code, negative for a signal.

    One that has come to its end by itself keeps the code it had: a signal changes it no more.
    """
    os.close(child.reader)
    for kill in (os.killpg, os.kill):  # it may have left its group
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(child.pid, signal.SIGKILL)
    try:
        _, status = os.waitpid(child.pid, 0)
    except ChildProcessError:
        return 0  # the master's loop has reaped it
    return os.waitstatus_to_exitcode(status)


def _outcome(data: bytearray, code: int) -> Outcome:
    try:
        told = json.loads(data)
        return Outcome(told.get("result"), told.get("failure", ""))
    except (ValueError, AttributeError):
        return Outcome(failure=f"its process {describe_exit(code)}")
