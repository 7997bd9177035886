"""One of the two sides of a forwarded connection: its input is sent to the other side.

Runs in a worker, on the loop. The path of a byte is `ready`, a recv and a send; bulk data goes
through a pipe. Data that the other side does not take is kept, at most a buffer or a pipe, and
nothing more is read until all of that is sent.
"""

from __future__ import annotations

import contextlib
import select
import socket
from select import EPOLLOUT
from typing import Final, Protocol, cast

from superd.plugin import Relayed
from superd_forward.context import Context
from superd_forward.memory import BUFFER_BYTES, Memory
from superd_forward.pipes import Pipe, is_at_mark

# epoll(7) events of a socket, by their meaning here
USUAL = select.EPOLLIN | select.EPOLLOUT  # input, and nothing else to act on
URGENT = select.EPOLLPRI  # an out-of-band byte: a read stops there, although more may follow
BROKEN = select.EPOLLERR
ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
INPUT = select.EPOLLIN | ENDED

IO_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
READ_TO_EMPTY = ENDED | URGENT
ANY_EVENT = -1
MAX_READS_PER_TURN = 8  # of one side, before other connections have their turn
LARGE_READ_BYTES = 32 * 1024
BULK_READS = 8  # large reads in a row, before a pipe is used

NOT_WRITABLE: Final = b""  # as `unsent`: not connected yet, or broken


class SideOwner(Protocol):
    """The methods of the forwarded connection that a side calls."""

    context: Context
    conn: Relayed
    is_over: bool

    def input_ended(self, side: Side) -> None: ...

    def was_reset(self, side: Side) -> None: ...

    def send_failed(self, side: Side) -> None: ...

    def flushed(self, side: Side) -> None: ...

    def reset_while_blocked(self) -> None: ...


class NoSide:
    """The other side before it is connected: nothing can be sent to it."""

    unsent = NOT_WRITABLE


class Side:
    """One side.

    `count`: bytes that were read from it. `unsent`: data that it has not taken yet; None if it can
    be sent to, NOT_WRITABLE if it cannot. `unread`: epoll(7) events of input that waits until the
    other side takes more. `is_broken`: it was reset, so nothing can be delivered to it, whatever
    the kernel still counts. `read_to_empty`: events after which a short read does not mean that the
    socket is empty.
    """

    __slots__ = (
        "count", "descriptor", "has_ended", "is_broken", "large_reads", "memory", "other",
        "owner", "read_to_empty", "sock", "unread", "unsent",
    )  # fmt: skip

    other: Side

    def __init__(self, owner: SideOwner, sock: socket.SocketType, memory: Memory) -> None:
        self.owner = owner
        self.sock = sock
        self.memory = memory
        self.descriptor = sock.fileno()
        self.count = 0
        self.large_reads = 0  # in a row
        self.unsent: bytes | memoryview | Pipe | None = None
        self.unread = 0
        # a read from unix(7) stops at a byte with a descriptor attached
        self.read_to_empty = ANY_EVENT if sock.family == socket.AF_UNIX else READ_TO_EMPTY
        self.has_ended = self.is_broken = False

    def ready(self, events: int) -> None:
        """Send and read what the events of epoll(7) allow."""
        if events == USUAL and self.other.unsent is self.unsent is None:
            self.pull(events)
            return
        if self.unsent and events & EPOLLOUT:
            self.flush()
            if self.is_broken:
                return  # its input has been handled
        if events & INPUT:
            if events & BROKEN:
                self.is_broken = True
            if self.has_ended:
                if self.is_broken:
                    self.owner.was_reset(self)
            elif self.other.unsent is not None:
                self.unread |= events
                if self.is_broken:
                    self.owner.reset_while_blocked()
            else:
                self.pull(events)

    def failed(self, error: BaseException) -> None:
        self.owner.conn.failed(error)

    def pull(self, events: int) -> None:
        """Pass its input on to the other side. A read that does not fill the buffer has emptied the
        socket, unless the events say otherwise.
        """
        if self.large_reads >= BULK_READS and self._pull_bulk():
            return
        other, memory = self.other, self.memory
        self.unread = reads = 0
        while (buffer := memory.buffer) is not None and reads < MAX_READS_PER_TURN:
            try:
                size = self.sock.recv_into(buffer, 0, IO_FLAGS)
            except BlockingIOError:
                return
            except OSError:
                self.owner.was_reset(self)
                return
            if not size:
                self.owner.input_ended(self)
                return
            self.count += size
            if size >= LARGE_READ_BYTES:
                self.large_reads += 1
            elif self.large_reads:
                self.large_reads = 0
            try:
                sent = other.sock.send(buffer[:size], IO_FLAGS)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.owner.send_failed(other)
                return
            if sent < size:
                self.unread = INPUT
                other.keep_unsent(buffer[sent:size])
                if self.is_broken:
                    self.owner.reset_while_blocked()
                return
            if size < BUFFER_BYTES and not events & self.read_to_empty:
                return
            reads += 1
        memory.read_again(self.descriptor, self)

    def _pull_bulk(self) -> bool:
        """Pass its input on through a pipe; return whether all of it was passed on."""
        self.large_reads = self.unread = 0  # counted from 0 again, unless more bulk data arrives
        if socket.AF_UNIX in (self.sock.family, self.other.sock.family):
            return False
        try:
            pipe = self.memory.pipes.borrow()
        except OSError:
            return False
        for side in (self, self.other):
            side.sock.setblocking(False)  # splice(2) has no flag for that
        is_done = self._splice(pipe)
        if self.owner.is_over:
            pipe.close()
        elif self.other.unsent is not pipe:
            self.memory.pipes.give_back(pipe)
        return is_done

    def _splice(self, pipe: Pipe) -> bool:
        """Pass input on through a pipe until it is empty, or the other side blocks. False if the
        rest has to be copied.
        """
        before = self.count
        for _ in range(MAX_READS_PER_TURN):
            try:
                size = pipe.read_from(self.descriptor)
            except BlockingIOError:
                if is_at_mark(self.sock):
                    return False
                if self.count - before >= LARGE_READ_BYTES:
                    self.large_reads = BULK_READS
                return True
            except OSError:
                self.owner.was_reset(self)
                return True
            if not size:
                if is_at_mark(self.sock):
                    return False
                self.owner.input_ended(self)
                return True
            self.count += size
            try:
                is_empty = pipe.write_to(self.other.descriptor)
            except OSError:
                self.owner.send_failed(self.other)
                return True
            if not is_empty:
                self.large_reads, self.unread = BULK_READS, INPUT
                self.other.unsent = pipe
                if self.is_broken:
                    self.owner.reset_while_blocked()
                return True
        self.large_reads = BULK_READS
        self.memory.read_again(self.descriptor, self)
        return True

    def keep_unsent(self, rest: memoryview) -> None:
        """Keep data that it has not taken; if memory is short, keep the buffer itself."""
        try:
            self.unsent = bytes(rest)
        except MemoryError:
            self.unsent = rest
            self.memory.release_buffer()

    def flush(self) -> None:
        """Send unsent data, as much as it takes."""
        unsent = self.unsent
        assert unsent
        try:
            if isinstance(unsent, Pipe):
                if not unsent.write_to(self.descriptor):
                    return
                self.memory.pipes.give_back(unsent)
            else:
                sent = self.sock.send(unsent, IO_FLAGS)
                if sent < len(unsent):
                    self.unsent = memoryview(unsent)[sent:]
                    return
        except BlockingIOError:
            return
        except OSError:
            self.owner.send_failed(self)
            return
        self.unsent = None
        self.owner.flushed(self)

    def drop_unsent(self) -> None:
        """Drop unsent data, and send nothing more."""
        if isinstance(self.unsent, Pipe):
            self.memory.pipes.give_back(self.unsent)
        self.unsent = NOT_WRITABLE

    def send_end(self) -> None:
        """Send the end of the other side's input."""
        with contextlib.suppress(OSError):  # it is broken; the next read reports that
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.drop_unsent()
        if self.sock.fileno() >= 0:  # otherwise the descriptor may have been reused
            self.owner.context.poller.forget(self.descriptor)
            self.sock.close()


NO_SIDE: Final = cast(Side, NoSide())
