"""The master's record of its workers, and the throttle of their starts.

Runs in the master. Signals a worker only until it is reaped: later its pid may belong to another
process. Trusts nothing that a worker sends: ValueError says what is wrong with a message.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from superd.master.workers.output import Output
from superd.net.closing import undelivered
from superd.observe.connections import pattern_of
from superd.observe.rows import Rows
from superd.process.forking import fork_child
from superd.worker.channel import (
    EVENT_PREFIX,
    MAX_MESSAGE_SIZE,
    AppendedFile,
    parse_message,
)
from superd.worker.lifeline import Lifeline
from superd.worker.worker import Assignment
from superd.worker.worker import main as worker_main

MAX_UNREAD_BYTES = 8 * 1024  # as the kernel counts them: a few messages
ALLOWANCE = 512  # messages between two checks; more than a socket holds, fewer than a flood


class PendingQuery(Protocol):
    """A query that some workers have not answered in full."""

    def take(self, child: Child, content: object, *, is_last: bool) -> None:
        """Take an answer of a worker, or a part of one; ValueError if it is invalid."""

    def lost(self, child: Child) -> None:
        """Expect no answer from a worker any more, since it has ended."""


@dataclass(eq=False)
class Child:
    """One worker, alive or not yet reaped.

    `allowance` is how many messages the master still reads until its next check. Messages of a
    worker that floods stay in its socket until that is full; then the worker drops them.
    `ended_for` says why the master ended it. `files` are those that its plugins append to, as it
    named them before it was confined, and opened at `files_since` by the monotonic clock. `rows` is
    what its services show of their state, `queries` the queries that it has not answered in full,
    by number.
    """

    pid: int
    channel: socket.socket
    lifeline: Lifeline
    started: float  # by the monotonic clock
    services: frozenset[str]
    ready: bool = False
    failure: tuple[int, str] | None = None
    allowance: int = ALLOWANCE
    output: Output | None = None
    has_closed: bool = False
    ended_for: str = ""
    is_confined: bool = False
    files: list[AppendedFile] = field(default_factory=list)
    files_since: float = 0.0
    rows: dict[str, Rows] = field(default_factory=dict)
    queries: dict[int, PendingQuery] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._events = pattern_of(self.pid, self.services)
        self.files_since = self.files_since or self.started

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def send(self, kind: str, **content: object) -> bool:
        """Send a message; False if the channel is full or closed."""
        try:
            self.channel.send(json.dumps({"kind": kind, **content}).encode("ascii"))
        except OSError:
            return False
        return True

    def send_files(self, kind: str, files: Sequence[int], **content: object) -> bool:
        """Send a message with open files; False if the channel is full or closed, or the worker
        has not read earlier messages: unread messages keep their files open.
        """
        if undelivered(self.channel) > MAX_UNREAD_BYTES:
            return False
        message = json.dumps({"kind": kind, **content}).encode("ascii")
        try:
            socket.send_fds(self.channel, [message], files)
        except OSError:
            return False
        return True

    def end(self, why: str) -> None:
        """Kill a worker that cannot be trusted to serve any more."""
        self.ended_for = self.ended_for or why
        self.signal(signal.SIGKILL)

    def messages(self) -> Iterator[dict[str, Any] | bytes]:
        """Yield the worker's messages within its allowance: objects, and batches of events, which
        are checked by a pattern but not parsed.
        """
        while self.allowance and not self.has_closed:
            try:
                data = self.channel.recv(MAX_MESSAGE_SIZE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                self.allowance -= 1
                yield self._checked(data) if data.startswith(EVENT_PREFIX) else parse_message(data)
            else:
                self.has_closed = True

    def _checked(self, data: bytes) -> bytes:
        if not self._events.fullmatch(data):
            raise ValueError("events of another worker or service")
        return data


def start_worker(assignment: Assignment) -> Child:
    """Fork a worker; OSError if the system has no process or descriptor left."""
    lifeline = Lifeline(assignment.scoreboard.due(assignment.place))
    with contextlib.ExitStack() as failed:
        failed.callback(lifeline.close)
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        failed.callback(os.close, reader)
        try:
            pid, channel = fork_child(partial(worker_main, assignment, lifeline, writer))
        finally:
            os.close(writer)
        failed.pop_all()
    lifeline.close_writer()
    services = frozenset(assignment.services)
    return Child(pid, channel, lifeline, time.monotonic(), services, output=Output(reader))


def reap() -> Iterator[tuple[int, int]]:
    """Yield pid and exit code (negative: the signal) of each child that has ended.

    Signals coalesce, so all children are collected each time; as process 1 also orphans of other
    processes. Each is reaped only when the caller asks for it, and can still be signalled before.
    """
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            yield pid, os.waitstatus_to_exitcode(status)


class Throttle:
    """Decides when a pool may have its next worker.

    A worker that was ready is replaced at once, unless workers keep dying: then after a second. If
    a worker ended before it was ready, the delay is 1 s, then twice as long each time, up to a
    minute.
    """

    BURST = 100  # replacements at once
    REFILL = 2.0  # per second
    MAX_DELAY = 60.0  # seconds

    def __init__(self) -> None:
        self._tokens = float(self.BURST)
        self._refilled = 0.0
        self._next = 1.0

    def delay(self, now: float, *, was_ready: bool) -> float:
        """Return how many seconds to wait before the next start."""
        if not was_ready:
            delay, self._next = self._next, min(self._next * 2, self.MAX_DELAY)
            return delay
        self._next = 1.0
        self._tokens = min(self.BURST, self._tokens + (now - self._refilled) * self.REFILL)
        self._refilled = now
        if self._tokens < 1:
            return 1.0
        self._tokens -= 1
        return 0.0
