"""One of the two ends of a forwarded connection: what it sends goes to the other one.

The path of a byte is `ready`, a recv and a send; that of bulk leads through a pipe. Whatever does
not fit is kept, at most a buffer or a pipe, and its sender is not read from until it has gone.
"""

from __future__ import annotations

import contextlib
import select
import socket
from select import EPOLLOUT
from typing import Final, Protocol, cast

from superd.plugin import Relayed
from superd_forward.context import Context
from superd_forward.memory import PORTION, Memory
from superd_forward.pipes import Pipe, is_at_mark

# epoll(7) events of a socket, by what they mean here
USUAL = select.EPOLLIN | select.EPOLLOUT  # input, and nothing else to act on
URGENT = select.EPOLLPRI  # an out-of-band byte: reading stops there although more may follow
BROKEN = select.EPOLLERR
ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
INPUT = select.EPOLLIN | ENDED

AT_ONCE = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
UNTIL_NONE = ENDED | URGENT
ANY_EVENT = -1
TURNS = 8  # portions that one side may send before the others' turn
LARGE = 32 * 1024  # bytes at once
BULK = 8  # portions of that size in a row

TAKES_NOTHING: Final = b""  # in the place of what is kept: not connected yet, or broken


class SideOwner(Protocol):
    """The forwarded connection that a side belongs to, as far as a side calls it."""

    context: Context
    conn: Relayed
    is_over: bool

    def ended(self, side: Side) -> None: ...

    def broke(self, side: Side) -> None: ...

    def refused(self, side: Side) -> None: ...

    def flushed(self, side: Side) -> None: ...

    def will_not_last(self) -> None: ...


class NoSide:
    """The other side while there is none: it takes nothing."""

    kept = TAKES_NOTHING


class Side:
    """`count` is how many bytes it has sent. `kept` is what it has not taken yet, None if it takes
    more. `unread` is what epoll(7) has told of input that the other side has no room for;
    `is_broken` that it was reset, so that it takes nothing, whatever the kernel still counts.
    With an event of `until_none`, a short read does not mean that there is no more.
    """

    __slots__ = (
        "bulk", "count", "descriptor", "has_ended", "is_broken", "kept", "memory", "other",
        "owner", "sock", "unread", "until_none",
    )  # fmt: skip

    other: Side

    def __init__(self, owner: SideOwner, sock: socket.SocketType, memory: Memory) -> None:
        self.owner = owner
        self.sock = sock
        self.memory = memory
        self.descriptor = sock.fileno()
        self.count = 0
        self.bulk = 0  # large portions in a row
        self.kept: bytes | memoryview | Pipe | None = None
        self.unread = 0
        # reading from unix(7) stops where a descriptor was sent along
        self.until_none = ANY_EVENT if sock.family == socket.AF_UNIX else UNTIL_NONE
        self.has_ended = self.is_broken = False

    def ready(self, events: int) -> None:
        """Do what can be done, by what epoll(7) says."""
        if events == USUAL and self.other.kept is self.kept is None:
            self.pull(events)
            return
        if self.kept and events & EPOLLOUT:
            self.flush()
            if self.is_broken:
                return  # all it has sent has been seen to
        if events & INPUT:
            if events & BROKEN:
                self.is_broken = True
            if self.has_ended:
                if self.is_broken:
                    self.owner.broke(self)
            elif self.other.kept is not None:
                self.unread |= events
                if self.is_broken:
                    self.owner.will_not_last()
            else:
                self.pull(events)

    def failed(self, error: BaseException) -> None:
        self.owner.conn.failed(error)

    def pull(self, events: int) -> None:
        """Pass on what there is to read. Where nothing tells of an end, less than a whole portion
        means that there is no more.
        """
        if self.bulk >= BULK and self._pull_bulk():
            return
        other, memory = self.other, self.memory
        self.unread = turns = 0
        while (buffer := memory.buffer) is not None and turns < TURNS:
            try:
                size = self.sock.recv_into(buffer, 0, AT_ONCE)
            except BlockingIOError:
                return
            except OSError:
                self.owner.broke(self)
                return
            if not size:
                self.owner.ended(self)
                return
            self.count += size
            if size >= LARGE:
                self.bulk += 1
            elif self.bulk:
                self.bulk = 0
            try:
                sent = other.sock.send(buffer[:size], AT_ONCE)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.owner.refused(other)
                return
            if sent < size:
                self.unread = INPUT
                other.keep(buffer[sent:size])
                if self.is_broken:
                    self.owner.will_not_last()
                return
            if size < PORTION and not events & self.until_none:
                return
            turns += 1
        memory.again(self.descriptor, self)

    def _pull_bulk(self) -> bool:
        """Pass on what there is to read through a pipe; tell whether that is all."""
        self.bulk = self.unread = 0  # until it has shown again that it is bulk
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
        elif self.other.kept is not pipe:
            self.memory.pipes.give_back(pipe)
        return is_done

    def _splice(self, pipe: Pipe) -> bool:
        """Pass on through a pipe until there is no more, or the other side takes no more; False
        where only copying goes on.
        """
        before = self.count
        for _ in range(TURNS):
            try:
                size = pipe.fill(self.descriptor)
            except BlockingIOError:
                if is_at_mark(self.sock):
                    return False
                if self.count - before >= LARGE:
                    self.bulk = BULK
                return True
            except OSError:
                self.owner.broke(self)
                return True
            if not size:
                if is_at_mark(self.sock):
                    return False
                self.owner.ended(self)
                return True
            self.count += size
            try:
                is_empty = pipe.empty(self.other.descriptor)
            except OSError:
                self.owner.refused(self.other)
                return True
            if not is_empty:
                self.bulk, self.unread = BULK, INPUT
                self.other.kept = pipe
                if self.is_broken:
                    self.owner.will_not_last()
                return True
        self.bulk = BULK
        self.memory.again(self.descriptor, self)
        return True

    def keep(self, rest: memoryview) -> None:
        """Keep what it has not taken; without memory for that, the buffer itself."""
        try:
            self.kept = bytes(rest)
        except MemoryError:
            self.kept = rest
            self.memory.give_away()

    def flush(self) -> None:
        """Send what was kept, as far as it is taken."""
        kept = self.kept
        assert kept
        try:
            if isinstance(kept, Pipe):
                if not kept.empty(self.descriptor):
                    return
                self.memory.pipes.give_back(kept)
            else:
                sent = self.sock.send(kept, AT_ONCE)
                if sent < len(kept):
                    self.kept = memoryview(kept)[sent:]
                    return
        except BlockingIOError:
            return
        except OSError:
            self.owner.refused(self)
            return
        self.kept = None
        self.owner.flushed(self)

    def take_nothing(self) -> None:
        """Let go of what was kept, as it cannot be sent any more."""
        if isinstance(self.kept, Pipe):
            self.memory.pipes.give_back(self.kept)
        self.kept = TAKES_NOTHING

    def end(self) -> None:
        """Say that nothing more comes."""
        with contextlib.suppress(OSError):  # it is broken, as reading from it will tell
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.take_nothing()
        if self.sock.fileno() >= 0:  # else the descriptor may be another's by now
            self.owner.context.poller.forget(self.descriptor)
            self.sock.close()


NO_SIDE: Final = cast(Side, NoSide())
