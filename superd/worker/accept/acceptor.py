"""The accept loop: takes what waits on one listener, a bounded number at a time.

Runs in the worker, on the loop. Polls its listener only while a connection could be taken: not
while a limit makes clients wait. Never closes it. Never trusts the listener's O_NONBLOCK:
SO_RCVTIMEO bounds an accept that another process made blocking. Never raises.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from superd.admission.gate import Ticket, Unnamed
from superd.admission.refusals import Refusal
from superd.admission.rules import NOBODY_KNOWN
from superd.admission.scoreboard import Count
from superd.net.addresses import Address, Transport
from superd.net.passing import accept_passed
from superd.observe.connections import safe
from superd.observe.records import Record
from superd.worker.accept.refuse import turn_away, unix_peer
from superd.worker.blocking.session import Executor
from superd.worker.runtime.accounting import endpoint_text
from superd.worker.runtime.context import Context
from superd.worker.runtime.service import WorkerService

BATCH = 64  # connections per wake-up: the others' turn comes before a flood is over
STARTS = 8  # the same where each takes a process, which may be as much as 10 ms

# accept(2): these concern the one connection that was to be accepted, or pass at once
NEXT = frozenset(
    (
        errno.ECONNABORTED, errno.EPROTO, errno.EINTR, errno.EPERM, errno.ENETDOWN,
        errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH,
        errno.EOPNOTSUPP, errno.ENETUNREACH, errno.ETIMEDOUT,
    )
)  # fmt: skip
# All others, EMFILE and ENFILE foremost: nothing can be taken for now, the backlog waits
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 0.25
NOT_GO = "-The service refuses you\r\n"  # RFC 1078, for who comes by tcpmux
RETRY = 0.02  # seconds until somebody who has been accepted is tried again
EXECUTOR_RETRY = 250_000_000  # ns until it is looked again whether somebody of a executor is free

_ACCEPTED = int(Count.ACCEPTED)
_WAITS = int(Count.WAITS)


class Accepted(socket.socket):
    """A socket whose family and type are plain numbers, as looking up enumerations takes time."""

    __slots__ = ()

    family = socket.SocketType.family  # type: ignore[assignment]
    type = socket.SocketType.type  # type: ignore[assignment]


class Acceptor:
    """Accepts on one listener and hands each that the gate lets in, a socket of the type `make`
    and what it was told of the client, to `dispatch`: at most `batch` at once. While its executor
    is full, clients wait.
    """

    def __init__(
        self,
        context: Context,
        service: WorkerService,
        address: Address,
        listener: socket.socket,
        dispatch: Callable[[Any, Any, Ticket, str], None],
        make: type[socket.SocketType],
        executor: Executor | None = None,
        batch: int = BATCH,
    ) -> None:
        self.context = context
        self.batch = batch
        self.executor = executor
        self.service = service
        self.address = address
        self.listener = listener
        self.dispatch = dispatch
        self.make = make
        self.transport = address.transport.client_transport
        is_passed = address.transport is Transport.TCPMUX
        self.local = "" if address.is_wildcard or is_passed else safe(str(address))
        self.is_unix = address.transport.is_unix
        self.poll = select.poll()
        self.poll.register(listener, select.POLLIN)
        # what socket.accept does, without its three enumerations: a tenth of a short connection
        self.take: Callable[[], tuple[int, Any]] = listener._accept  # type: ignore[attr-defined]
        self.numbers = (int(listener.family), int(listener.type), listener.proto)
        if is_passed:
            self.take, self.numbers = partial(accept_passed, listener), (-1, -1, -1)
        self.pause = FIRST_PAUSE
        self.stopped = False
        self.is_at_limit = False
        self.resumption: asyncio.TimerHandle | None = None
        self.paused_until = 0.0  # by the loop's time; 0 is not at all

    def start(self) -> None:
        """Poll the listener, unless a plugin has asked for a pause."""
        self.service.waiting.discard(self)
        if self.paused_until and (left := self.paused_until - self.context.loop.time()) > 0:
            self._resume_in(left)
            return
        self.paused_until = 0.0
        self._cancel_resumption()
        if not self.stopped:
            self.context.loop.add_reader(self.listener, self.accept)

    def _cancel_resumption(self) -> None:
        if self.resumption is not None:
            self.resumption.cancel()
            self.resumption = None

    def stop(self) -> None:
        """Take what has been waiting, then poll no more and let go of the listener."""
        if not self.stopped:
            self.stopped = True
            self.context.loop.remove_reader(self.listener)
            for _ in range(0, self.service.entry.backlog, self.batch):
                if not self.accept():
                    break
            self.listener.close()

    def accept(self) -> bool:
        """Accept until none waits, but no more than a batch; tell whether more may wait."""
        accept = self.take
        dispatch, make, numbers = self.dispatch, self.make, self.numbers
        counts, gate = self.service.counts, self.service.gate
        local = self.local
        waits, asks_user = gate.waits, self.is_unix and gate.asks_user
        has_more, executor = self.poll.poll, self.executor
        if self.context.heartbeat.wants_beat:
            self.context.heartbeat.quicken()
        for number in range(self.batch):
            # an accept in vain costs more than to look first, and so does a place given back
            if number and not has_more(0):
                return False
            if self.paused_until:
                return False
            if executor is not None and executor.is_full:
                self._wait(EXECUTOR_RETRY)
                return False
            if waits and (delay := gate.reserve()):
                self._wait(delay)
                return False
            self.is_at_limit = False
            try:
                descriptor, sockaddr = accept()
            except BlockingIOError:
                if waits:
                    gate.unreserve()
                return False
            except OSError as error:
                if waits:
                    gate.unreserve()
                if error.errno not in NEXT:
                    self._pause(error)
                    return False
                self._report(error, "a connection was lost before it was accepted")
                continue
            self.pause = FIRST_PAUSE
            counts[_ACCEPTED] += 1
            sock = make(*numbers, descriptor)
            if self.is_unix:
                ticket = gate.admit(unix_peer(sock) if asks_user else NOBODY_KNOWN)
            else:
                ticket = gate.admit(sockaddr[0])
            if isinstance(ticket, (tuple, list)):
                dispatch(sock, sockaddr, ticket, local or self._local_of(sock))
            else:
                self._decided(sock, sockaddr, ticket)
        return True

    def _decided(
        self, sock: socket.SocketType, sockaddr: Any, ticket: Ticket | Refusal | Unnamed
    ) -> None:
        """Go on with a client as the gate says."""
        if isinstance(ticket, Refusal) and self.service.gate.may_wait(ticket):
            self.context.hold(RETRY, partial(self._again, sock, sockaddr))
        elif isinstance(ticket, Refusal):
            peer = endpoint_text(self.transport, sockaddr)
            self.service.records.refused(peer, self.local or self._local_of(sock), ticket.value)
            is_passed = self.address.transport is Transport.TCPMUX
            banner = self.service.entry.banner_refused or (NOT_GO if is_passed else "")
            turn_away(self.context, self.service, sock, ticket, banner)
        elif isinstance(ticket, Unnamed):
            named = partial(self._named, sock, sockaddr, ticket.ticket)
            self.context.names.ask(sockaddr[0], named)
        else:
            self._start(sock, sockaddr, ticket)

    def _start(self, sock: socket.SocketType, sockaddr: Any, ticket: Ticket) -> None:
        """Serve a client that was not admitted at once, when there is somebody to do it."""
        if self.executor is not None and self.executor.is_full:
            self.context.hold(RETRY, partial(self._start, sock, sockaddr, ticket))
        else:
            self.dispatch(sock, sockaddr, ticket, self.local or self._local_of(sock))

    def _again(self, sock: socket.SocketType, sockaddr: Any) -> None:
        """Try once more with a client that came while others took the last places."""
        who = unix_peer(sock) if self.is_unix else sockaddr[0]
        self._decided(sock, sockaddr, self.service.gate.admit(who))

    def _named(self, sock: socket.SocketType, sockaddr: Any, ticket: Ticket, name: str) -> None:
        """Go on with a client whose name had to be asked for."""
        decision = self.service.gate.admit_named(sockaddr[0], name, ticket)
        self._decided(sock, sockaddr, decision)
        if isinstance(decision, Refusal):
            self.service.resume()

    def _local_of(self, sock: socket.SocketType) -> str:
        """Return which of our addresses a client has reached."""
        transport = self.transport
        try:
            return f"{transport.value}://{endpoint_text(transport, sock.getsockname())}"
        except OSError:
            return ""

    def pause_for(self, seconds: float) -> None:
        """Leave those who come in the backlog for a while, even if there is room again."""
        self.service.waiting.discard(self)
        self.paused_until = max(self.paused_until, self.context.loop.time() + seconds)
        self._resume_in(seconds)

    def _wait(self, delay: int) -> None:
        """Leave those who come in the backlog, for some ns or until a connection ends."""
        if not self.is_at_limit:
            self.is_at_limit = True
            self.service.counts[_WAITS] += 1
        self.service.waiting.add(self)
        self._resume_in(delay / 1e9)

    def _resume_in(self, seconds: float) -> None:
        if not self.stopped:
            self._cancel_resumption()
            self.context.loop.remove_reader(self.listener)
            self.resumption = self.context.loop.call_later(seconds, self.start)

    def _pause(self, error: OSError) -> None:
        """Leave those who wait in the backlog for a while; polling would only spin."""
        self._report(error, "cannot accept, clients wait")
        self.context.check_listeners()
        if error.errno == errno.EMFILE:
            self.context.check_descriptors()
        self._resume_in(self.pause)
        self.pause = min(self.pause * 2, LONGEST_PAUSE)

    def _report(self, error: OSError, what: str) -> None:
        name = errno.errorcode.get(error.errno or 0, "")
        message = f"{what}: {os.strerror(error.errno or 0)} ({name})"
        record = Record("warning", message, service=self.service.name)
        self.context.flood_gate.report((self.service.name, name), record)
