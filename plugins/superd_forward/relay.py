"""A forwarded connection from its beginning to its end.

Runs in a worker, on the loop. Client and target see what they would see without a forwarder: an end
of input is passed on while the other direction continues, and a reset is passed on once everything
before it is delivered. unix(7) sockets have no reset; the peer sees an end of input.
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
from superd_forward.loops import LOOP, Endpoint, chain_of, unregister
from superd_forward.side import INPUT, NO_SIDE, Side
from superd_forward.targets import Target

EARLY_RESET_SECONDS = 1.0  # a target that resets so soon has not served; another is tried
RESET_DELIVERY_TIMEOUT = 10.0  # seconds without progress, for data that precedes a reset


class ForwardedConnection(Relay):
    """The client's side and the target's; `target_side` is None until it is connected."""

    __slots__ = (
        "chain", "client", "conn", "connecting", "context", "deadline", "endpoint", "first_end",
        "is_over", "last_count", "order", "reset_end", "target", "target_side", "totals",
    )  # fmt: skip

    def __init__(self, context: Context, sock: socket.SocketType, conn: Relayed) -> None:
        self.context = context
        self.conn = conn
        self.client = Side(self, sock, context.memory)
        self.client.other = NO_SIDE
        self.target_side: Side | None = None
        self.target: Target | None = None
        self.first_end: End | None = None  # whose input ended first
        self.reset_end: End | None = None  # which side was reset
        self.is_over = False
        self.last_count = -1  # bytes, at the last check of a half-closed or reset connection
        self.deadline = 0.0
        self.totals = 0, 0  # bytes received and sent, once it is over
        self.connecting: Connecting | None = None
        self.endpoint: Endpoint | None = None  # of the socket to the target
        self.chain = chain_of(sock)  # the services that the client has passed through
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
        return self.totals[0] if self.is_over else self.client.count

    @property
    def sent(self) -> int:
        if self.is_over:
            return self.totals[1]
        if self.target_side is None:
            return 0
        return self.target_side.count - len(self.client.unsent or ())

    # What connecting calls

    def connected(
        self, attempt: Attempt, target: Target, started: float, events: int, *, is_broken: bool
    ) -> None:
        """Relay to a connected socket, which the poller has reported `events` of; `started` is the
        monotonic time of the first attempt.
        """
        self.connecting, client = None, self.client
        sock, self.endpoint = attempt.sock, attempt.endpoint
        self.target = target
        now = time.monotonic()
        self.deadline = now + EARLY_RESET_SECONDS
        if target.failures_in_a_row:
            self.context.loop.call_later(EARLY_RESET_SECONDS, self.confirm, target)
        self.conn.reached(attempt.address.name, now - started)
        self.context.title.changed()
        side = self.target_side = Side(self, sock, self.context.memory)
        side.other, client.other = client, side
        side.is_broken = is_broken
        self.context.poller.hand_over(side.descriptor, side)
        if self.context.header is not None:
            header = self.context.header(self.conn.peer, self.conn.local)
            side.keep_unsent(memoryview(header))
            side.flush()
        if client.unread and side.unsent is None:
            client.pull(client.unread)
        if events and side.sock.fileno() >= 0:
            side.ready(events)

    def confirm(self, target: Target) -> None:
        """Count a target that had failed as serving, if it still has the connection."""
        if self.target is target:
            target.succeeded()

    def unreachable(self, why: str) -> None:
        """Reset the client, as it would see without a forwarder."""
        self.connecting = None
        self.conn.note(why)
        reset_on_close(self.client.sock)
        self._over(End.UNREACHABLE)

    # What the sides call

    def input_ended(self, side: Side) -> None:
        """Pass the end of a side's input on."""
        if side.is_broken:
            self.was_reset(side)
            return
        side.has_ended = True
        other = side.other
        if self.first_end is None:
            self.first_end = End.CLIENT if side is self.client else End.SERVER
        if other.has_ended and not (other.unsent or side.unsent):
            self._over(self.first_end)
            return
        if other.unsent is None:
            other.send_end()
        self.context.half_closed.add(self)

    def flushed(self, side: Side) -> None:
        """Continue once a side has taken all unsent data."""
        source = side.other
        if self.reset_end is not None:
            self.reset_once_read()
        elif not source.has_ended:
            if source.unread:
                source.pull(source.unread)
        elif side.has_ended and not source.unsent:
            self._over(self.first_end or End.SERVER)
        else:
            side.send_end()

    def send_failed(self, side: Side) -> None:
        """Note that a side is broken, and pass on the input that it sent before."""
        side.is_broken = True
        side.drop_unsent()
        if side.other.is_broken:
            self._over(End.RESET)  # both are broken
        elif side.has_ended or self.reset_end is not None:
            self.was_reset(side)
        elif side.other.unsent:
            side.unread = INPUT
            self.reset_while_blocked()
        else:
            side.pull(INPUT)

    def was_reset(self, side: Side) -> None:
        """Pass the reset of a side on: everything before it has been read."""
        if self.is_over or self.reset_end is not None:
            self._over(self.reset_end or End.RESET)
            return
        if side is self.client and self.connecting is not None:
            self._over(End.RESET)
            return
        if side is not self.client and self._try_next_target():
            return
        self.reset_end = End.RESET if side is self.client else End.TARGET_RESET
        side.has_ended = True
        side.drop_unsent()
        self.last_count = -1
        self.reset_once_read()

    def reset_while_blocked(self) -> None:
        """A side was reset while the other does not read: limit the wait for that."""
        if self.reset_end is not None:
            self._over(self.reset_end)
        elif self.connecting is not None:
            self._over(End.RESET)  # connecting to a target is pointless now
        else:
            self.last_count = -1
            self.context.half_closed.add(self)

    def _try_next_target(self) -> bool:
        """Try the next target if this one has reset the connection early, before any data."""
        target, side = self.target, self.target_side
        assert target is not None
        assert side is not None
        if side.count or self.client.count or self.first_end or time.monotonic() > self.deadline:
            return False
        target.failed(os.strerror(errno.ECONNRESET))
        target.client_removed()
        self.target = None
        if not length_hint(self.order):
            return False
        if self.endpoint is not None:
            unregister(self.endpoint)
            self.endpoint = None
        side.close()
        self.target_side = None
        self.client.other, self.client.unread = NO_SIDE, INPUT
        self._connect()
        return True

    # How it ends

    def reset_once_read(self) -> None:
        """Reset the other side once everything before the reset is delivered to it."""
        side = self.client if self.reset_end is End.TARGET_RESET else self.target_side
        assert side is not None
        assert self.reset_end is not None
        now = time.monotonic()
        left = 0 if side.is_broken else len(side.unsent or ()) + undelivered(side.sock)
        if left != self.last_count:
            self.last_count, self.deadline = left, now + RESET_DELIVERY_TIMEOUT
        if left and now < self.deadline:
            side.other.close()
            self.context.resetting.add(self)
            return
        reset_on_close(side.sock)
        self._over(self.reset_end)

    def check_half_close(self) -> None:
        """Close the connection if one side has ended or was reset, and it was idle too long."""
        if self.reset_end is not None:
            return  # `reset_once_read` has a deadline of its own
        now, limit = time.monotonic(), self.context.half_close_timeout
        sides = [side for side in self._sides if side is not None]
        if not limit and any(side.is_broken for side in sides):
            limit = RESET_DELIVERY_TIMEOUT
        waiting = sum(len(side.unsent or ()) + undelivered(side.sock) for side in sides)
        if (delivered := self.received + self.sent - waiting) != self.last_count:
            self.last_count, self.deadline = delivered, now + limit
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
        """Close both sides and release everything."""
        self.totals = self.received, self.sent
        self.is_over = True
        if self.connecting is not None:
            self.connecting.cancel()
            self.connecting = None
        if self.endpoint is not None:
            unregister(self.endpoint)
        del self.context.connections[self]
        self.context.title.changed()
        self.context.half_closed.discard(self)
        self.context.resetting.discard(self)
        for side in self._sides:
            if side is not None:
                side.close()
                side.other = NO_SIDE
        if not self.context.connections:
            self.context.memory.pipes.close_spare()
        if self.target is not None:
            self.target.client_removed()
            self.target.succeeded()
            self.target = None
        self.client, self.target_side = NO_SIDE, None  # breaks reference cycles
