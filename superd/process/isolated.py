"""Runs a job in a child process of its own and returns its result as JSON.

Runs in the command line and the master, for jobs that may raise, hang, exit or crash. The child's
process group is killed at the end, with all that the job has started. Never raises for a failure of
the job, which is in its outcome. Raises SuperdError if no process can be started.
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
from superd.process.forking import (
    describe_exit,
    reset_signals,
    signals_blocked,
    signals_unblocked,
)

JOB_TIMEOUT = 10.0  # seconds until a child is killed
RESULT_END = b"\n"  # JSON on one line contains none


@dataclass(frozen=True)
class Outcome:
    """The result of a job, or in `failure` the reason why there is none."""

    result: Any = None
    failure: str = ""


@dataclass
class Job:
    """A job that runs in a child. Poll `reader`, and call `read` when it is readable."""

    pid: int
    reader: int
    data: bytearray = field(default_factory=bytearray)
    is_unfinished: bool = True

    def read(self) -> bool:
        """Read available data; return whether it is complete, or the child has closed the pipe."""
        part = os.read(self.reader, 65536)
        self.data += part
        if not part or part.endswith(RESULT_END):
            self.is_unfinished = False
        return not self.is_unfinished

    def finish(self) -> Outcome:
        """Kill the child if it still runs, and return the outcome."""
        code = _end(self)
        return (
            Outcome(failure="it took too long") if self.is_unfinished else _outcome(self.data, code)
        )


def run_isolated(
    jobs: Mapping[str, Callable[[], Any]], timeout: float = JOB_TIMEOUT
) -> dict[str, Outcome]:
    """Run each job in a child of its own, all at the same time; return their outcomes by name."""
    deadline = time.monotonic() + timeout
    children: dict[str, Job] = {}
    codes = {}
    try:
        for name, job in jobs.items():
            children[name] = start_isolated(job, timeout)
        with signals_unblocked():
            _read_until(children.values(), deadline)
    finally:
        for name, child in children.items():
            codes[name] = _end(child)
    return {
        name: Outcome(failure=f"it took longer than {timeout:g} s")
        if child.is_unfinished
        else _outcome(child.data, codes[name])
        for name, child in children.items()
    }


def start_isolated(job: Callable[[], Any], timeout: float) -> Job:
    """Start a job in a child that ends itself one second after `timeout` seconds."""
    sys.stdout.flush()  # else the child would write buffered text a second time
    sys.stderr.flush()
    try:
        reader, writer = os.pipe()
    except OSError as error:
        raise SuperdError(f"cannot start a process: {reason(error)}") from None
    try:
        with signals_blocked():
            pid = os.fork()
            if pid == 0:
                _run(job, writer, timeout)
    except OSError as error:
        os.close(reader)
        raise SuperdError(f"cannot start a process: {reason(error)}") from None
    finally:
        os.close(writer)
    return Job(pid, reader)


def _run(job: Callable[[], Any], writer: int, timeout: float) -> NoReturn:
    """Do the job in the child, with an empty standard input; its output goes to standard error."""
    try:
        gc.freeze()  # a collection would copy the memory that is shared with the parent
        reset_signals()
        os.setsid()
        signal.setitimer(signal.ITIMER_REAL, timeout + 1)  # in case the parent has ended by then
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)
        data = json.dumps({"result": job()})
    except SuperdError as error:
        data = json.dumps({"failure": str(error)})
    except BaseException as error:  # noqa: BLE001  any exception of the job is its outcome
        data = json.dumps({"failure": reason(error)})
    try:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with open(writer, "wb") as pipe:
            pipe.write(data.encode("ascii") + RESULT_END)
    finally:
        os._exit(0)


def _read_until(children: Iterable[Job], deadline: float) -> None:
    """Read until each child has sent its result or closed its pipe, or until the deadline."""
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
    """Kill a child and its process group; return its exit code, negative for a signal.

    A child that has already ended keeps its own exit code.
    """
    os.close(child.reader)
    for kill in (os.killpg, os.kill):  # the child may have left its group
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(child.pid, signal.SIGKILL)
    try:
        _, status = os.waitpid(child.pid, 0)
    except ChildProcessError:
        return 0  # the master's loop has reaped it already
    return os.waitstatus_to_exitcode(status)


def _outcome(data: bytearray, code: int) -> Outcome:
    try:
        sent = json.loads(data)
        return Outcome(sent.get("result"), sent.get("failure", ""))
    except (ValueError, AttributeError):
        return Outcome(failure=f"its process {describe_exit(code)}")
