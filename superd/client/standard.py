"""Standard input and output, read and written without blocking, whatever kind of file they are.

Runs in the command line. Never sets O_NONBLOCK on the descriptors: the shell shares the terminal.
Raises BrokenPipeError if the reader of standard output has closed it, SuperdError if it cannot be
written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import stat

from superd.errors import SuperdError, reason

PIPE_SIZE = 1 << 20  # bytes: any user may have it, and it saves a third of the work of 64 KiB


def _widen(descriptor: int) -> None:
    """Enlarge the buffer of a pipe, as far as the kernel allows it (pipe(7))."""
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)


class Input:
    """Standard input, or a pipe in its place. Read it only after poll(2) has reported data."""

    def __init__(self, descriptor: int = 0, *, is_terminal: bool | None = None) -> None:
        self.descriptor = descriptor
        _widen(descriptor)
        self.is_terminal = os.isatty(descriptor) if is_terminal is None else is_terminal

    def read(self, room: memoryview) -> int:
        """Read into `room`; 0 at the end. BlockingIOError where another process took the data."""
        try:
            return os.readv(self.descriptor, [room])
        except BlockingIOError:
            raise
        except OSError as error:
            raise SuperdError(f"cannot read standard input: {reason(error)}") from None


class Output:
    """Standard output. A blocking write could deadlock with a reader that waits for this side."""

    def __init__(self, descriptor: int = 1) -> None:
        self.descriptor = descriptor
        self._max_write: int | None = None
        self._socket: socket.socket | None = None
        self._opened = -1
        _widen(descriptor)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(descriptor))
        elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
            try:  # an open file description of its own, so that no other process gets the flag
                self._opened = os.open(f"/proc/self/fd/{descriptor}", flags)
                self.descriptor = self._opened
            except OSError:
                self._max_write = select.PIPE_BUF  # poll(2) promises room for that much

    def write(self, data: memoryview) -> int:
        """Write as much as fits; return the number of bytes."""
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT)
            return os.write(self.descriptor, data[: self._max_write])
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise
        except ConnectionError as error:
            raise BrokenPipeError(error.errno, "") from None
        except OSError as error:
            raise SuperdError(f"cannot write standard output: {reason(error)}") from None

    def write_all(self, data: bytes) -> None:
        """Write everything, however long that takes."""
        left = memoryview(data)
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        while left:
            poll.poll()
            left = left[self.write(left) :]

    def close(self) -> None:
        """Close what was opened here; standard output itself stays open."""
        if self._socket is not None:
            self._socket.close()
        if self._opened >= 0:
            os.close(self._opened)
            self._opened = -1
