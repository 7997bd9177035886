"""The master's record of its workers, and how often one may be started.

Runs in the master. Signals a worker only until it has been reaped, so that its number cannot have
become somebody else's. Never raises but for a fork that fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from superd.master.pools import Pool
from superd.worker.channel import LARGEST

MESSAGES_AT_ONCE = 256


@dataclass(eq=False)
class Child:
    """One worker. `place` is its row of the scoreboard, `serial` is never used again."""

    pid: int
    pool: Pool
    place: int
    serial: int
    channel: socket.socket
    started: float
    ready: bool = False
    failure: tuple[int, str] | None = None

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def messages(self) -> list[dict[str, Any]]:
        """Return what the worker has sent; ValueError where it is not a message."""
        found = []
        for _ in range(MESSAGES_AT_ONCE):
            try:
                data = self.channel.recv(LARGEST)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                break
            message = json.loads(data)
            if not isinstance(message, dict):
                raise ValueError("not a message")
            found.append(message)
        return found


def fork_child(main: Callable[[socket.socket], NoReturn]) -> tuple[int, socket.socket]:
    """Fork a worker that runs `main(line)`; return its pid and the master's end of the line.

    Signals stay blocked until the worker has forgotten the master's handlers.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            try:
                main(theirs)
            finally:
                os._exit(1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    theirs.close()
    return pid, ours


def reap() -> list[tuple[int, int]]:
    """Return pid and exit code (negative: the signal) of all children that have ended.

    Signals coalesce, so all are collected each time; as pid 1 that includes orphans of others.
    """
    ended = []
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended.append((pid, os.waitstatus_to_exitcode(status)))
    return ended


class Throttle:
    """When a place may have its next worker.

    One that served is replaced at once, unless workers keep dying: then every second. One that
    died before it was ready waits 1 s, then twice as long each time, a minute at most.
    """

    BURST = 100
    REFILL = 2.0  # per second

    def __init__(self) -> None:
        self._tokens = float(self.BURST)
        self._refilled = 0.0
        self._failures = 0

    def delay(self, now: float, *, was_ready: bool) -> float:
        """Return how many seconds to wait before the next start."""
        if not was_ready:
            self._failures += 1
            return min(2.0 ** (self._failures - 1), 60.0)
        self._failures = 0
        self._tokens = min(self.BURST, self._tokens + (now - self._refilled) * self.REFILL)
        self._refilled = now
        if self._tokens < 1:
            return 1.0
        self._tokens -= 1
        return 0.0
