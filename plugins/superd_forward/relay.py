"""A forwarded connection from its beginning to its end.

Both ends are to see what they would see without a forwarder: an end of input passes through while
the other direction goes on, and a reset becomes a reset, once everything before it has arrived.
unix(7) sockets know no reset; whoever is at one sees the end.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from operator import length_hint

from superd.plugin import End, Relay, Relayed, reset_on_close, undelivered
from superd_forward.connecting import Attempt, Connecting
from superd_forward.context import Context
from superd_forward.loops import LOOP, Endpoint, chain_of, forget
from superd_forward.side import INPUT, NO_SIDE, Side
from superd_forward.targets import Target

AT_ONCE = 1.0  # seconds in which a target may show that it does not want what it has taken
PATIENCE = 10.0  # seconds that somebody may read nothing of what precedes a reset


class ForwardedConnection(Relay):
    """A client's side and its target's, once there is one; until then `target_side` is None."""

    __slots__ = (
        "chain", "client", "conn", "connecting", "context", "cut_short", "deadline", "endpoint",
        "first", "is_over", "order", "passed", "seen", "target", "target_side",
    )  # fmt: skip

    def __init__(self, context: Context, sock: socket.SocketType, conn: Relayed) -> None:
        self.context = context
        self.conn = conn
        self.client = Side(self, sock, context.memory)
        self.client.other = NO_SIDE
        self.target_side: Side | None = None
        self.target: Target | None = None
        self.first: End | None = None  # who has ended its input first
        self.cut_short: End | None = None  # who has broken it off
        self.is_over = False
        self.seen = -1  # bytes, when it was looked at how a half-closed or broken one goes on
        self.deadline = 0.0
        self.passed = 0, 0  # bytes received and sent, once it is over
        self.connecting: Connecting | None = None
        self.endpoint: Endpoint | None = None  # of our socket to the target
        self.chain = chain_of(sock)  # the services that it has come through
        self.order = iter(context.targets.order(conn))
        context.poller.add(self.client.descriptor, self.client)
        context.connections[self] = None
        try:
            if context in self.chain:
                self.unreachable(LOOP)
            else:
                self._connect()
        except BaseException:
            self.cut()
            raise

    def _connect(self) -> None:
        self.connecting = Connecting(self, self.order)
        self.connecting.start()

    def __str__(self) -> str:
        return f"{self.conn.peer.endpoint} > {self.target.name if self.target else '...'}"

    @property
    def _sides(self) -> tuple[Side, Side | None]:
        return self.client, self.target_side

    @property
    def received(self) -> int:
        return self.passed[0] if self.is_over else self.client.count

    @property
    def sent(self) -> int:
        if self.is_over:
            return self.passed[1]
        if self.target_side is None:
            return 0
        return self.target_side.count - len(self.client.kept or ())

    # What connecting calls

    def connected(
        self, attempt: Attempt, target: Target, started: float, events: int, *, is_broken: bool
    ) -> None:
        """Go on with a socket that is connected and in the poller, which has told of `events`;
        `started` is when the target was first tried.
        """
        self.connecting, client = None, self.client
        sock, self.endpoint = attempt.sock, attempt.endpoint
        self.target = target
        now = time.monotonic()
        self.deadline = now + AT_ONCE
        if target.in_a_row:
            self.context.loop.call_later(AT_ONCE, self.lasts, target)
        self.conn.reached(attempt.way.name, now - started)
        self.context.title.changed()
        side = self.target_side = Side(self, sock, self.context.memory)
        side.other, client.other = client, side
        side.is_broken = is_broken
        self.context.poller.hand_over(side.descriptor, side)
        if self.context.header is not None:
            header = self.context.header(self.conn.peer, self.conn.local)
            side.keep(memoryview(header))
            side.flush()
        if client.unread and side.kept is None:
            client.pull(client.unread)
        if events and side.sock.fileno() >= 0:
            side.ready(events)

    def lasts(self, target: Target) -> None:
        """Believe in a target that had failed, if it still has the connection."""
        if self.target is target:
            target.succeeded()

    def unreachable(self, why: str) -> None:
        """Give up: the client sees what it would see if there were no forwarder."""
        self.connecting = None
        self.conn.note(why)
        reset_on_close(self.client.sock)
        self._over(End.UNREACHABLE)

    # What the sides call

    def ended(self, side: Side) -> None:
        """A side sends no more."""
        if side.is_broken:
            self.broke(side)
            return
        side.has_ended = True
        other = side.other
        if self.first is None:
            self.first = End.CLIENT if side is self.client else End.SERVER
        if other.has_ended and not (other.kept or side.kept):
            self._over(self.first)
            return
        if other.kept is None:
            other.end()
        self.context.half_closed.add(self)

    def flushed(self, side: Side) -> None:
        """A side has taken what was kept for it."""
        source = side.other
        if self.cut_short is not None:
            self.reset_once_read()
        elif not source.has_ended:
            if source.unread:
                source.pull(source.unread)
        elif side.has_ended and not source.kept:
            self._over(self.first or End.SERVER)
        else:
            side.end()

    def refused(self, side: Side) -> None:
        """A side is broken, as sending to it has shown; what it has sent itself still counts."""
        side.is_broken = True
        side.take_nothing()
        if side.other.is_broken:
            self._over(End.RESET)  # nobody is left to pass anything on to
        elif side.has_ended or self.cut_short is not None:
            self.broke(side)
        elif side.other.kept:
            side.unread = INPUT
            self.will_not_last()
        else:
            side.pull(INPUT)

    def broke(self, side: Side) -> None:
        """A side was reset, and all that came before has been passed on."""
        if self.is_over or self.cut_short is not None:
            self._over(self.cut_short or End.RESET)
            return
        if side is self.client and self.connecting is not None:
            self._over(End.RESET)
            return
        if side is not self.client and self._may_try_another():
            return
        self.cut_short = End.RESET if side is self.client else End.TARGET_RESET
        side.has_ended = True
        side.take_nothing()
        self.seen = -1
        self.reset_once_read()

    def will_not_last(self) -> None:
        """A side was reset while the other takes nothing: that is not waited for without end."""
        if self.cut_short is not None:
            self._over(self.cut_short)
        elif self.connecting is not None:
            self._over(End.RESET)  # nobody is to be connected to any more
        else:
            self.seen = -1
            self.context.half_closed.add(self)

    def _may_try_another(self) -> bool:
        """Go to the next target where this one has reset the connection before anything passed."""
        target, side = self.target, self.target_side
        assert target is not None
        assert side is not None
        if side.count or self.client.count or self.first or time.monotonic() > self.deadline:
            return False
        target.failed(os.strerror(errno.ECONNRESET))
        target.left()
        self.target = None
        if not length_hint(self.order):
            return False
        if self.endpoint is not None:
            forget(self.endpoint)
            self.endpoint = None
        side.close()
        self.target_side = None
        self.client.other, self.client.unread = NO_SIDE, INPUT
        self._connect()
        return True

    # How it ends

    def reset_once_read(self) -> None:
        """Reset the side that is left when its kernel has all that precedes the reset."""
        side = self.client if self.cut_short is End.TARGET_RESET else self.target_side
        assert side is not None
        assert self.cut_short is not None
        now = time.monotonic()
        left = 0 if side.is_broken else len(side.kept or ()) + undelivered(side.sock)
        if left != self.seen:
            self.seen, self.deadline = left, now + PATIENCE
        if left and now < self.deadline:
            side.other.close()
            self.context.breaking.add(self)
            return
        reset_on_close(side.sock)
        self._over(self.cut_short)

    def look_if_half_closed_too_long(self) -> None:
        """End it where one side has ended or was reset, and nothing has passed for a while."""
        if self.cut_short is not None:
            return  # the deadline is that of the reset
        now, limit = time.monotonic(), self.context.half_close_timeout
        if not limit and any(side is not None and side.is_broken for side in self._sides):
            limit = PATIENCE
        waiting = sum(len(s.kept or ()) + undelivered(s.sock) for s in self._sides if s is not None)
        if (passed := self.received + self.sent - waiting) != self.seen:
            self.seen, self.deadline = passed, now + limit
        elif limit and now >= self.deadline:
            self._reset_both()
            self._over(End.HALF_CLOSE)

    def cut(self) -> None:
        if not self.is_over:
            self._reset_both()
            self._close()

    def _reset_both(self) -> None:
        for side in self._sides:
            if side is not None and side.sock.fileno() >= 0:
                reset_on_close(side.sock)

    def _over(self, end: End) -> None:
        if not self.is_over:
            self._close()
            self.conn.ended(end)

    def _close(self) -> None:
        """Close both sides and forget everything."""
        self.passed = self.received, self.sent
        self.is_over = True
        if self.connecting is not None:
            self.connecting.cancel()
            self.connecting = None
        if self.endpoint is not None:
            forget(self.endpoint)
        del self.context.connections[self]
        self.context.title.changed()
        self.context.half_closed.discard(self)
        self.context.breaking.discard(self)
        for side in self._sides:
            if side is not None:
                side.close()
                side.other = NO_SIDE
        if not self.context.connections:
            self.context.memory.pipes.close_spare()
        if self.target is not None:
            self.target.left()
            self.target.succeeded()
            self.target = None
        self.client, self.target_side = NO_SIDE, None  # circles would wait to be collected
