"""Pipes that bulk goes through: splice(2) moves it from socket to socket without copying it here.

A pipe is borrowed for as long as something is in it. Where there is none to be had, bulk is copied
like everything else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket

CAPACITY = 256 * 1024  # bytes, and at most so many are in one
MOST_SPARE = 8

SIOCATMARK = 0x8905  # what sockatmark(3) calls, which Python does not offer

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


def is_at_mark(source: socket.SocketType) -> bool:
    """Tell whether a byte out of band is next: splice(2) stops there, and says that there is no
    more or, once all has come, that this is the end. Where that is not told, it may be.
    """
    try:
        return any(fcntl.ioctl(source.fileno(), SIOCATMARK, bytes(4)))
    except OSError:
        return True


class Pipes:
    """Those of one service. Making one takes longer than what goes through it at once, so that some
    are kept until nobody is connected any more.
    """

    def __init__(self) -> None:
        self._spare: list[Pipe] = []

    def borrow(self) -> Pipe:
        """Return an empty pipe. Raises OSError where there is no descriptor left."""
        return self._spare.pop() if self._spare else Pipe()

    def give_back(self, pipe: Pipe) -> None:
        """Take a pipe back, whatever is in it."""
        if pipe.size or len(self._spare) >= MOST_SPARE:
            pipe.close()
        else:
            self._spare.append(pipe)

    def close_spare(self) -> None:
        while self._spare:
            self._spare.pop().close()
