"""Connecting to a target: all of its addresses, and then the next target.

The next address is tried when one has failed, and beside it when it has not answered for a while
(RFC 8305, happy eyeballs); who answers first has it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Iterator
from functools import partial
from operator import length_hint
from typing import Protocol

from superd.plugin import Candidates, Relayed, Unavailable
from superd_forward.context import Context
from superd_forward.loops import Chain, forget, remember
from superd_forward.side import BROKEN, INPUT
from superd_forward.targets import Target, Way

NO_ADDRESS = "its name has no address"
TIMED_OUT = os.strerror(errno.ETIMEDOUT)
PAUSE = 0.25  # seconds that clients wait in the backlog where superd itself has run out

# what no target is to blame for
EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC))

BROKEN_SINCE = frozenset((errno.ECONNRESET, errno.EPIPE))  # after it had been connected


class ConnectingOwner(Protocol):
    """The forwarded connection that is being connected, as far as it is called here."""

    context: Context
    conn: Relayed
    chain: Chain
    is_over: bool

    def connected(
        self, attempt: Attempt, target: Target, started: float, events: int, *, is_broken: bool
    ) -> None: ...

    def unreachable(self, why: str) -> None: ...

    def cut(self) -> None: ...


class Connecting:
    """Tries targets in their order for one connection, and calls it back once."""

    __slots__ = (
        "attempts", "deadline", "order", "owner", "started", "target", "ways", "why",
    )  # fmt: skip

    def __init__(self, owner: ConnectingOwner, order: Iterator[Target]) -> None:
        self.owner = owner
        self.order = order
        self.attempts: list[Attempt] = []
        self.ways: Candidates[Way] | tuple[()] = ()
        self.started = self.deadline = 0.0
        self.target: Target | None = None
        self.why = ""

    def start(self, last: str = "") -> None:
        """Go to the next target; give up where there is none, for what was wrong with the last."""
        context = self.owner.context
        target = self.target = next(self.order, None)
        if target is None:
            context.connecting.discard(self)
            self.owner.unreachable(last)
            return
        target.entered()
        self.why = ""
        self.started = time.monotonic()
        self.deadline = self.started + context.connect_timeout
        if target.way is not None:
            self._try(target.way)
        else:
            context.connecting.add(self)
            context.look_up(target.host, partial(self._found, target))

    def _found(self, target: Target, hosts: tuple[str, ...]) -> None:
        """Try the addresses that a target's name has."""
        if target is not self.target:
            return  # it was too late, and another is tried
        context = self.owner.context
        if context.bind_to:
            hosts = tuple(h for h in hosts if (":" in h) == (":" in context.bind_to))
        self.ways = Candidates(target.at(host) for host in hosts)
        self._try_next()

    def _try_next(self) -> None:
        """Try the next address beside those that are being tried."""
        if self.ways:
            self._try(self.ways.popleft())
        elif not self.attempts:
            self._next_target(self.why or NO_ADDRESS)

    def _try(self, way: Way) -> None:
        context = self.owner.context
        try:
            attempt = Attempt(self, context.connect(way), way)
            self.attempts.append(attempt)
            context.poller.add(attempt.sock.fileno(), attempt)
        except BlockingIOError:  # the backlog of a unix socket is full, and nothing tells its end
            self.ways = Candidates((way, *self.ways))
        except OSError as error:
            others = self.why or self.ways or self.attempts or length_hint(self.order)
            if has_run_out(error, others=bool(others)):
                self._give_up(error)
            else:
                self._note(way, error.strerror or str(error))
                self._try_next()
            return
        if self.ways:
            self.ways.attempted()
        context.connecting.add(self)

    def won(self, attempt: Attempt, events: int, *, is_broken: bool) -> None:
        """Leave the others, and go on with who has answered, be it broken since."""
        self.attempts.remove(attempt)
        target, self.target = self.target, None
        assert target is not None
        self._leave()
        target.took()
        self.owner.connected(attempt, target, self.started, events & INPUT, is_broken=is_broken)

    def lost(self, attempt: Attempt, why: str) -> None:
        """Go on where an address has not taken the connection."""
        self.attempts.remove(attempt)
        attempt.close()
        self._note(attempt.way, why)
        self._try_next()

    def look(self, now: float) -> None:
        """See whether it is time for the next address, or for the next target."""
        if now >= self.deadline:
            self._next_target(TIMED_OUT)
        elif self.ways and now >= self.ways.due_at:
            self._try_next()

    def cancel(self) -> None:
        """Give up without a word."""
        if self.target is not None:
            self.target.left()
            self.target = None
        self._leave()

    def _leave(self) -> None:
        self.owner.context.connecting.discard(self)
        self.ways = ()
        while self.attempts:
            self.attempts.pop().close()

    def _next_target(self, why: str) -> None:
        target = self.target
        assert target is not None
        target.failed(why.removeprefix(f"{target.name}: "))
        self.cancel()
        # not at once, as all of many targets may fail at once
        go_on = partial(self._go_on, f"{target.name}: {why}")
        self.owner.context.loop.call_soon(go_on)

    def _go_on(self, last: str) -> None:
        if not self.owner.is_over:
            self.start(last)

    def _give_up(self, error: OSError) -> None:
        assert self.target is not None
        text = f"cannot connect to {self.target.name}: {error.strerror}"
        self.owner.cut()
        self.owner.conn.failed(Unavailable(text, PAUSE))

    def _note(self, way: Way, why: str) -> None:
        assert self.target is not None
        self.why = why if way is self.target.way else f"{way.address.endpoint}: {why}"


def has_run_out(error: OSError, *, others: bool) -> bool:
    """Tell whether nobody can be connected to now. An address towards which no port is left, or
    whose family is switched off here, leaves `others` to be tried.
    """
    return error.errno in EXHAUSTED or (error.errno == errno.EADDRNOTAVAIL and not others)


class Attempt:
    """A socket that is being connected to one of a target's addresses."""

    __slots__ = ("connecting", "endpoint", "sock", "way")

    def __init__(self, connecting: Connecting, sock: socket.SocketType, way: Way) -> None:
        self.connecting = connecting
        self.sock = sock
        self.way = way
        self.endpoint = None
        if way.may_loop:
            owner = connecting.owner
            self.endpoint = remember(sock, way.address.port, (*owner.chain, owner.context))

    def ready(self, events: int) -> None:
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if events & BROKEN else 0
        if error and error not in BROKEN_SINCE:
            self.connecting.lost(self, os.strerror(error))
        elif events & select.EPOLLOUT:
            self.connecting.won(self, events, is_broken=error != 0)

    def failed(self, error: BaseException) -> None:
        self.connecting.owner.conn.failed(error)

    def close(self) -> None:
        if self.endpoint is not None:
            forget(self.endpoint)
        self.connecting.owner.context.poller.forget(self.sock.fileno())
        self.sock.close()
