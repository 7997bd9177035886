"""The master's record of its workers, and how often one may be started.

Runs in the master. Signals a worker only until it has been reaped, so that its number cannot have
become somebody else's. Believes nothing that a worker sends: ValueError says what is wrong with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from superd.net.closing import undelivered
from superd.observe.connections import pattern_of
from superd.observe.rows import Rows
from superd.process.forking import fork_child
from superd.worker.channel import EVENT, LARGEST, parsed
from superd.worker.lifeline import Lifeline
from superd.worker.worker import Assignment
from superd.worker.worker import main as worker_main

MOST_UNREAD = 8 * 1024  # bytes, as the kernel counts them: some messages
ALLOWANCE = 512  # messages between two looks; more than a socket holds, fewer than a flood


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
    `ended_for` says why the master ended it. `rows` is what its services show of their state,
    `queries` the queries that it has not answered in full, by number.
    """

    pid: int
    channel: socket.socket
    lifeline: Lifeline
    started: float  # by the monotonic clock
    services: frozenset[str]
    ready: bool = False
    failure: tuple[int, str] | None = None
    allowance: int = ALLOWANCE
    has_closed: bool = False
    ended_for: str = ""
    rows: dict[str, Rows] = field(default_factory=dict)
    queries: dict[int, PendingQuery] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._events = pattern_of(self.pid, self.services)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ask(self, kind: str, **content: object) -> bool:
        """Send a worker what it is to do; False where its line is full, or gone."""
        try:
            self.channel.send(json.dumps({"kind": kind, **content}).encode("ascii"))
        except OSError:
            return False
        return True

    def hand(self, kind: str, file: int, **content: object) -> bool:
        """Send a worker an open file. One that leaves what it is sent gets no more: it would keep
        all of these files from being forgotten.
        """
        if undelivered(self.channel) > MOST_UNREAD:
            return False
        message = json.dumps({"kind": kind, **content}).encode("ascii")
        try:
            socket.send_fds(self.channel, [message], [file])
        except OSError:
            return False
        return True

    def end(self, why: str) -> None:
        """Kill a worker that cannot be relied on any more."""
        self.ended_for = self.ended_for or why
        self.signal(signal.SIGKILL)

    def messages(self) -> Iterator[dict[str, Any] | bytes]:
        """Yield what the worker has sent, as far as its allowance goes: objects, and batches of
        events, which are checked but not read.
        """
        while self.allowance and not self.has_closed:
            try:
                data = self.channel.recv(LARGEST)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                self.allowance -= 1
                yield self._checked(data) if data.startswith(EVENT) else parsed(data)
            else:
                self.has_closed = True

    def _checked(self, data: bytes) -> bytes:
        if not self._events.fullmatch(data):
            raise ValueError("events that are not its own")
        return data


def start_worker(assignment: Assignment) -> Child:
    """Fork a worker; OSError if the system has no process or descriptor left."""
    lifeline = Lifeline(assignment.scoreboard.due(assignment.place))
    try:
        pid, channel = fork_child(partial(worker_main, assignment, lifeline))
    except OSError:
        lifeline.close()
        raise
    lifeline.let_go_of_writer()
    return Child(pid, channel, lifeline, time.monotonic(), frozenset(assignment.services))


def reap() -> Iterator[tuple[int, int]]:
    """Yield pid and exit code (negative: the signal) of each child that has ended.

    Signals coalesce, so all are collected each time; as pid 1 that includes orphans of others.
    One by one, so that who is told of the first end can still signal the others.
    """
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            yield pid, os.waitstatus_to_exitcode(status)


class Throttle:
    """When a pool may have its next worker.

    One that served is replaced at once, unless workers keep dying: then every second. One that
    died before it was ready waits 1 s, then twice as long each time, a minute at most.
    """

    BURST = 100
    REFILL = 2.0  # per second
    LONGEST = 60.0

    def __init__(self) -> None:
        self._tokens = float(self.BURST)
        self._refilled = 0.0
        self._next = 1.0

    def delay(self, now: float, *, was_ready: bool) -> float:
        """Return how many seconds to wait before the next start."""
        if not was_ready:
            delay, self._next = self._next, min(self._next * 2, self.LONGEST)
            return delay
        self._next = 1.0
        self._tokens = min(self.BURST, self._tokens + (now - self._refilled) * self.REFILL)
        self._refilled = now
        if self._tokens < 1:
            return 1.0
        self._tokens -= 1
        return 0.0
