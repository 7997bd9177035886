"""Pipes for bulk data: splice(2) moves it from socket to socket without a copy in this process.

A pipe is borrowed while it holds data. If no pipe can be made, bulk data is copied like the rest.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket

PIPE_BYTES = 256 * 1024
MAX_SPARE_PIPES = 8

SIOCATMARK = 0x8905  # the request of sockatmark(3), which Python does not offer

SPLICE_FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


class Pipe:
    """Data that one side has sent and the other has not taken yet; `size` is its length."""

    __slots__ = ("reader", "size", "writer")

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.size = 0
        with contextlib.suppress(OSError):  # large pipes are limited per user (pipe(7))
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def __len__(self) -> int:
        return self.size

    def read_from(self, source: int) -> int:
        """Move data from a socket into the pipe; return its length, 0 at the end of input.
        Raises OSError.
        """
        size = os.splice(source, self.writer, PIPE_BYTES, flags=SPLICE_FLAGS)
        self.size += size
        return size

    def write_to(self, sink: int) -> bool:
        """Move data from the pipe to a socket; return whether the pipe is empty. Raises OSError."""
        with contextlib.suppress(BlockingIOError):
            self.size -= os.splice(self.reader, sink, self.size, flags=SPLICE_FLAGS)
        return not self.size

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


def is_at_mark(source: socket.SocketType) -> bool:
    """Return whether the next byte is out of band; True if that is unknown.

    splice(2) stops there, and reports that no data is there, or the end of input once
    everything has arrived.
    """
    try:
        return any(fcntl.ioctl(source.fileno(), SIOCATMARK, bytes(4)))
    except OSError:
        return True


class PipePool:
    """The pipes of one service. To make a pipe takes longer than to pass its contents on, so some
    are kept while the service has connections.
    """

    def __init__(self) -> None:
        self._spare: list[Pipe] = []

    def borrow(self) -> Pipe:
        """Return an empty pipe. Raises OSError without a free descriptor."""
        return self._spare.pop() if self._spare else Pipe()

    def give_back(self, pipe: Pipe) -> None:
        """Take a pipe back; close it if it still holds data."""
        if pipe.size or len(self._spare) >= MAX_SPARE_PIPES:
            pipe.close()
        else:
            self._spare.append(pipe)

    def close_spare(self) -> None:
        while self._spare:
            self._spare.pop().close()
