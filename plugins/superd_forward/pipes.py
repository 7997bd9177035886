"""Pipes that bulk goes through: splice(2) moves it from socket to socket without copying it here.

A pipe is borrowed for as long as something is in it. Where there is none to be had, bulk is copied
like everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os

SPARE_TIME = 0.25  # seconds that a pipe is kept for the next who wants one
CAPACITY = 256 * 1024  # bytes, and at most so many are in one

AT_ONCE = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


class Pipe:
    """What one side has sent and the other has not taken yet; `size` is how much that is."""

    __slots__ = ("reader", "size", "writer")

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.size = 0
        with contextlib.suppress(OSError):  # a user may have only so much of large ones (pipe(7))
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, CAPACITY)

    def __len__(self) -> int:
        return self.size

    def fill(self, source: int) -> int:
        """Take from a socket what there is, 0 at its end. Raises OSError."""
        size = os.splice(source, self.writer, CAPACITY, flags=AT_ONCE)
        self.size += size
        return size

    def empty(self, sink: int) -> bool:
        """Give a socket what it takes; tell whether that was all. Raises OSError."""
        with contextlib.suppress(BlockingIOError):
            self.size -= os.splice(self.reader, sink, self.size, flags=AT_ONCE)
        return not self.size

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


class Pipes:
    """Those of one service. Making one takes longer than what goes through it at once, so that one
    which is empty again is kept for a moment.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._spare: list[Pipe] = []
        self._unwanted = 0  # how many of these nobody has wanted since the last look
        self._is_due = False

    def borrow(self) -> Pipe:
        """Return an empty pipe. Raises OSError where there is no descriptor left."""
        if not self._spare:
            return Pipe()
        pipe = self._spare.pop()
        self._unwanted = min(self._unwanted, len(self._spare))
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take a pipe back, whatever is in it."""
        if pipe.size:
            pipe.close()
            return
        self._spare.append(pipe)
        if not self._is_due:
            self._is_due = True
            self._loop.call_later(SPARE_TIME, self._look)

    def _look(self) -> None:
        for _ in range(self._unwanted):
            self._spare.pop().close()
        self._unwanted = len(self._spare)
        self._is_due = bool(self._spare)
        if self._is_due:
            self._loop.call_later(SPARE_TIME, self._look)
