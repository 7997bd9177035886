"""Connecting to a target: to all of its addresses, and then to the next target.

Runs in a worker, on the loop. The next address is tried when one has failed, and in parallel when
it has not answered for a while (RFC 8305, happy eyeballs); the first to accept wins.
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
from superd_forward.loops import Chain, register, unregister
from superd_forward.side import BROKEN, INPUT
from superd_forward.targets import Target, TargetAddress

NO_ADDRESS = "its name has no address"
TIMED_OUT = os.strerror(errno.ETIMEDOUT)
SHORTAGE_PAUSE_SECONDS = 0.25  # clients stay in the backlog while superd itself is short

# errors of this system, not of a target
SHORTAGE_ERRNOS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC))

RESET_ERRNOS = frozenset((errno.ECONNRESET, errno.EPIPE))  # the target had accepted before


class ConnectingOwner(Protocol):
    """The methods of a forwarded connection that are called here."""

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
    """Tries targets in their order for one connection, and calls its owner back once."""

    __slots__ = (
        "attempts", "candidates", "deadline", "order", "owner", "started", "target", "why",
    )  # fmt: skip

    def __init__(self, owner: ConnectingOwner, order: Iterator[Target]) -> None:
        self.owner = owner
        self.order = order
        self.attempts: list[Attempt] = []
        self.candidates: Candidates[TargetAddress] | tuple[()] = ()
        self.started = self.deadline = 0.0
        self.target: Target | None = None
        self.why = ""

    def start(self, last_error: str = "") -> None:
        """Try the next target. Without one, report the error of the last."""
        context = self.owner.context
        target = self.target = next(self.order, None)
        if target is None:
            context.connecting.discard(self)
            self.owner.unreachable(last_error)
            return
        target.client_added()
        self.why = ""
        self.started = time.monotonic()
        self.deadline = self.started + context.connect_timeout
        if target.address is not None:
            self._try(target.address)
        else:
            context.connecting.add(self)
            context.look_up(target.host, partial(self._found, target))

    def _found(self, target: Target, hosts: tuple[str, ...]) -> None:
        """Try the addresses of a target's name."""
        if target is not self.target:
            return  # the look-up took too long, and another target is tried
        context = self.owner.context
        if context.bind_to:
            hosts = tuple(h for h in hosts if (":" in h) == (":" in context.bind_to))
        self.candidates = Candidates(target.address_at(host) for host in hosts)
        self._try_next()

    def _try_next(self) -> None:
        """Try the next address, in parallel with pending attempts."""
        if self.candidates:
            self._try(self.candidates.popleft())
        elif not self.attempts:
            self._next_target(self.why or NO_ADDRESS)

    def _try(self, address: TargetAddress) -> None:
        context = self.owner.context
        try:
            attempt = Attempt(self, context.connect(address), address)
            self.attempts.append(attempt)
            context.poller.add(attempt.sock.fileno(), attempt)
        except BlockingIOError:  # a unix socket's backlog is full, and no event reports room
            self.candidates = Candidates((address, *self.candidates))
        except OSError as error:
            others = self.why or self.candidates or self.attempts or length_hint(self.order)
            if is_shortage(error, has_alternative=bool(others)):
                self._give_up(error)
            else:
                self._note(address, error.strerror or str(error))
                self._try_next()
            return
        if self.candidates:
            self.candidates.attempted()
        context.connecting.add(self)

    def attempt_succeeded(self, attempt: Attempt, events: int, *, is_broken: bool) -> None:
        """Drop the other attempts, and pass this one to the owner, even if it was reset since."""
        self.attempts.remove(attempt)
        target, self.target = self.target, None
        assert target is not None
        self._leave()
        target.accepted()
        self.owner.connected(attempt, target, self.started, events & INPUT, is_broken=is_broken)

    def attempt_failed(self, attempt: Attempt, why: str) -> None:
        """Try the next address."""
        self.attempts.remove(attempt)
        attempt.close()
        self._note(attempt.address, why)
        self._try_next()

    def check(self, now: float) -> None:
        """Try the next target after the time-out, or the next address when it is due."""
        if now >= self.deadline:
            self._next_target(TIMED_OUT)
        elif self.candidates and now >= self.candidates.due_at:
            self._try_next()

    def cancel(self) -> None:
        """Stop trying, without calling the owner."""
        if self.target is not None:
            self.target.client_removed()
            self.target = None
        self._leave()

    def _leave(self) -> None:
        self.owner.context.connecting.discard(self)
        self.candidates = ()
        while self.attempts:
            self.attempts.pop().close()

    def _next_target(self, why: str) -> None:
        target = self.target
        assert target is not None
        target.failed(why.removeprefix(f"{target.name}: "))
        self.cancel()
        # in the next turn of the loop: a recursion over many failing targets could be too deep
        start = partial(self._start_unless_over, f"{target.name}: {why}")
        self.owner.context.loop.call_soon(start)

    def _start_unless_over(self, last_error: str) -> None:
        if not self.owner.is_over:
            self.start(last_error)

    def _give_up(self, error: OSError) -> None:
        assert self.target is not None
        text = f"cannot connect to {self.target.name}: {error.strerror}"
        self.owner.cut()
        self.owner.conn.failed(Unavailable(text, SHORTAGE_PAUSE_SECONDS))

    def _note(self, address: TargetAddress, why: str) -> None:
        assert self.target is not None
        is_only = address is self.target.address
        self.why = why if is_only else f"{address.address.endpoint}: {why}"


def is_shortage(error: OSError, *, has_alternative: bool) -> bool:
    """Return whether an error means that no target can be connected to now.

    EADDRNOTAVAIL does so only without an alternative: ports may be exhausted towards one address,
    or its family disabled here, while another address works.
    """
    if error.errno == errno.EADDRNOTAVAIL:
        return not has_alternative
    return error.errno in SHORTAGE_ERRNOS


class Attempt:
    """A socket that connects to one address of a target."""

    __slots__ = ("address", "connecting", "endpoint", "sock")

    def __init__(
        self, connecting: Connecting, sock: socket.SocketType, address: TargetAddress
    ) -> None:
        self.connecting = connecting
        self.sock = sock
        self.address = address
        self.endpoint = None
        if address.may_loop:
            owner = connecting.owner
            self.endpoint = register(sock, address.port, (*owner.chain, owner.context))

    def ready(self, events: int) -> None:
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if events & BROKEN else 0
        if error and error not in RESET_ERRNOS:
            self.connecting.attempt_failed(self, os.strerror(error))
        elif events & select.EPOLLOUT:
            self.connecting.attempt_succeeded(self, events, is_broken=error != 0)

    def failed(self, error: BaseException) -> None:
        self.connecting.owner.conn.failed(error)

    def close(self) -> None:
        if self.endpoint is not None:
            unregister(self.endpoint)
        self.connecting.owner.context.poller.forget(self.sock.fileno())
        self.sock.close()
