"""Standard input and output: read and written without waiting, whatever they are.

Runs in the command line. Never makes the descriptors non-blocking: a terminal belongs to the shell
as well. Raises BrokenPipeError where nobody reads the output any more, SuperdError where it cannot
be written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import stat

from superd.errors import SuperdError, reason

WIDE = 1 << 20  # bytes in a pipe: what anybody may have, and a third less work than 64 KiB


def _widen(descriptor: int) -> None:
    """Let a pipe hold more, as far as the kernel likes that (pipe(7))."""
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, WIDE)


class Input:
    """What is read: standard input, or what stands for it. Read it only when poll(2) says so."""

    def __init__(self, descriptor: int = 0, *, is_terminal: bool | None = None) -> None:
        self.descriptor = descriptor
        _widen(descriptor)
        self.is_terminal = os.isatty(descriptor) if is_terminal is None else is_terminal

    def read(self, room: memoryview) -> int:
        """Read into `room`; 0 at the end. BlockingIOError where somebody else was faster."""
        try:
            return os.readv(self.descriptor, [room])
        except BlockingIOError:
            raise
        except OSError as error:
            raise SuperdError(f"cannot read standard input: {reason(error)}") from None


class Output:
    """Standard output. A blocking write would wait for a reader who may wait for this side."""

    def __init__(self, descriptor: int = 1) -> None:
        self.descriptor = descriptor
        self._most: int | None = None
        self._socket: socket.socket | None = None
        self._own = -1
        _widen(descriptor)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(descriptor))
        elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
            try:  # a description of its own, so that the flag is nobody else's
                self._own = os.open(f"/proc/self/fd/{descriptor}", flags)
                self.descriptor = self._own
            except OSError:
                self._most = select.PIPE_BUF  # there is room for that much where poll(2) says so

    def write(self, data: memoryview) -> int:
        """Write what fits, and return how much that was."""
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT)
            return os.write(self.descriptor, data[: self._most])
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise
        except ConnectionError as error:
            raise BrokenPipeError(error.errno, "") from None
        except OSError as error:
            raise SuperdError(f"cannot write standard output: {reason(error)}") from None

    def write_all(self, data: bytes) -> None:
        """Write all of it, however long that takes."""
        left = memoryview(data)
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        while left:
            poll.poll()
            left = left[self.write(left) :]

    def close(self) -> None:
        """Give back what was opened; standard output itself stays open."""
        if self._socket is not None:
            self._socket.close()
        if self._own >= 0:
            os.close(self._own)
            self._own = -1
