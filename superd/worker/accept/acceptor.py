"""The accept loop: accepts the pending connections of one listener, a bounded number at a time.

Runs in the worker, on the loop. Polls its listener only while a connection could be served: while a
limit is reached, pending connections stay in the kernel's backlog. Never closes the listener before
the worker drains. Never trusts the listener's O_NONBLOCK, which another process may have cleared:
SO_RCVTIMEO bounds an accept that blocks. Never raises.
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
from superd.worker.accept.refuse import close_refused, unix_peer
from superd.worker.blocking.session import Executor
from superd.worker.runtime.accounting import endpoint_text
from superd.worker.runtime.context import Context
from superd.worker.runtime.service import WorkerService

MAX_BATCH = 64  # connections per wake-up, so that a flood does not starve other listeners
MAX_PROCESS_BATCH = 8  # the same where each connection starts a process, which may take 10 ms

# Errors of accept(2) that concern only the connection that would have been accepted, or pass at
# once. After any other, EMFILE and ENFILE above all, pending connections stay in the backlog.
TRANSIENT_ACCEPT_ERRNOS = frozenset(
    (
        errno.ECONNABORTED, errno.EPROTO, errno.EINTR, errno.EPERM, errno.ENETDOWN,
        errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH,
        errno.EOPNOTSUPP, errno.ENETUNREACH, errno.ETIMEDOUT,
    )
)  # fmt: skip
MIN_ERROR_PAUSE = 0.05  # seconds without polling after another error; doubled after each
MAX_ERROR_PAUSE = 0.25  # seconds
TCPMUX_REFUSED = "-The service refuses you\r\n"  # RFC 1078
DISPATCH_RETRY_INTERVAL = 0.02  # seconds before dispatch of an accepted connection is retried
EXECUTOR_RETRY_NS = 250_000_000  # before a full executor is checked again

_ACCEPTED = int(Count.ACCEPTED)
_WAITS = int(Count.WAITS)


class AcceptedSocket(socket.socket):
    """A socket whose family and type are plain numbers: looking up enumerations takes time."""

    __slots__ = ()

    family = socket.SocketType.family  # type: ignore[assignment]
    type = socket.SocketType.type  # type: ignore[assignment]


class Acceptor:
    """Accepts at one listener, at most `batch` connections at once. Each that the gate admits is
    passed to `dispatch`, as a socket of the type `make` with the client's address and ticket and
    our address. While the executor is full, pending connections stay in the backlog.
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
        batch: int = MAX_BATCH,
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
        self.error_pause = MIN_ERROR_PAUSE
        self.is_stopped = False
        self.is_at_limit = False
        self.resume_timer: asyncio.TimerHandle | None = None
        self.paused_until = 0.0  # by the loop's time; 0 is not at all

    def start(self) -> None:
        """Poll the listener, or do so once the pause that a plugin has requested is over."""
        self.service.waiting.discard(self)
        if self.paused_until and (left := self.paused_until - self.context.loop.time()) > 0:
            self._resume_in(left)
            return
        self.paused_until = 0.0
        self._cancel_resume_timer()
        if not self.is_stopped:
            add_reader = self.context.loop.add_reader
            self.service.scope.run(add_reader, self.listener, self.accept)

    def _cancel_resume_timer(self) -> None:
        if self.resume_timer is not None:
            self.resume_timer.cancel()
            self.resume_timer = None

    def stop(self) -> None:
        """Accept what is pending, then close the listener in this worker."""
        if not self.is_stopped:
            self.is_stopped = True
            self.context.loop.remove_reader(self.listener)
            for _ in range(0, self.service.entry.backlog, self.batch):
                if not self.accept():
                    break
            self.listener.close()

    def accept(self) -> bool:
        """Accept until none is pending, but at most a batch; return whether more may be pending."""
        accept = self.take
        dispatch, make, numbers = self.dispatch, self.make, self.numbers
        counts, gate = self.service.counts, self.service.gate
        local = self.local
        waits, asks_user = gate.waits, self.is_unix and gate.asks_user
        has_more, executor = self.poll.poll, self.executor
        if self.context.heartbeat.wants_beat:
            self.context.heartbeat.speed_up()
        for number in range(self.batch):
            # a failing accept and an unused reservation each cost more than this poll
            if number and not has_more(0):
                return False
            if self.paused_until:
                return False
            if executor is not None and executor.is_full:
                self._wait(EXECUTOR_RETRY_NS)
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
                if error.errno not in TRANSIENT_ACCEPT_ERRNOS:
                    self._pause(error)
                    return False
                self._report(error, "a connection was lost before it was accepted")
                continue
            self.error_pause = MIN_ERROR_PAUSE
            counts[_ACCEPTED] += 1
            sock = make(*numbers, descriptor)
            if self.is_unix:
                ticket = gate.admit(unix_peer(sock) if asks_user else NOBODY_KNOWN)
            else:
                ticket = gate.admit(sockaddr[0])
            if isinstance(ticket, (tuple, list)):
                dispatch(sock, sockaddr, ticket, local or self._local_of(sock))
            else:
                self._apply(sock, sockaddr, ticket)
        return True

    def _apply(
        self, sock: socket.SocketType, sockaddr: Any, ticket: Ticket | Refusal | Unnamed
    ) -> None:
        """Dispatch, hold or refuse an accepted connection, as the gate decided."""
        if isinstance(ticket, Refusal) and self.service.gate.may_wait(ticket):
            retry = partial(self._retry_admission, sock, sockaddr)
            self.context.hold(DISPATCH_RETRY_INTERVAL, retry)
        elif isinstance(ticket, Refusal):
            peer = endpoint_text(self.transport, sockaddr)
            self.service.records.refused(peer, self.local or self._local_of(sock), ticket.value)
            is_passed = self.address.transport is Transport.TCPMUX
            banner = self.service.entry.banner_refused or (TCPMUX_REFUSED if is_passed else "")
            close_refused(self.context, self.service, sock, ticket, banner)
        elif isinstance(ticket, Unnamed):
            named = partial(self._admit_named, sock, sockaddr, ticket.ticket)
            self.context.names.look_up_name(sockaddr[0], named)
        else:
            self._start(sock, sockaddr, ticket)

    def _start(self, sock: socket.SocketType, sockaddr: Any, ticket: Ticket) -> None:
        """Dispatch a connection that was not admitted at once; retry while the executor is full."""
        if self.executor is not None and self.executor.is_full:
            self.context.hold(DISPATCH_RETRY_INTERVAL, partial(self._start, sock, sockaddr, ticket))
        else:
            self.dispatch(sock, sockaddr, ticket, self.local or self._local_of(sock))

    def _retry_admission(self, sock: socket.SocketType, sockaddr: Any) -> None:
        """Decide again on a connection that was accepted while another took the last slot."""
        peer = unix_peer(sock) if self.is_unix else sockaddr[0]
        self._apply(sock, sockaddr, self.service.gate.admit(peer))

    def _admit_named(
        self, sock: socket.SocketType, sockaddr: Any, ticket: Ticket, name: str
    ) -> None:
        """Decide on a connection once the name of its client is known."""
        decision = self.service.gate.admit_named(sockaddr[0], name, ticket)
        self._apply(sock, sockaddr, decision)
        if isinstance(decision, Refusal):
            self.service.resume()

    def _local_of(self, sock: socket.SocketType) -> str:
        """Return which of our addresses the client has connected to; "" if it has closed."""
        transport = self.transport
        try:
            return f"{transport.value}://{endpoint_text(transport, sock.getsockname())}"
        except OSError:
            return ""

    def pause_for(self, seconds: float) -> None:
        """Leave pending connections in the backlog for a while, even if there is a free slot."""
        self.service.waiting.discard(self)
        self.paused_until = max(self.paused_until, self.context.loop.time() + seconds)
        self._resume_in(seconds)

    def _wait(self, delay: int) -> None:
        """Leave pending connections in the backlog, for `delay` ns or until a slot is free."""
        if not self.is_at_limit:
            self.is_at_limit = True
            self.service.counts[_WAITS] += 1
        self.service.waiting.add(self)
        self._resume_in(delay / 1e9)

    def _resume_in(self, seconds: float) -> None:
        if not self.is_stopped:
            self._cancel_resume_timer()
            self.context.loop.remove_reader(self.listener)
            self.resume_timer = self.context.loop.call_later(seconds, self.start)

    def _pause(self, error: OSError) -> None:
        """Stop polling for a while after an error of accept(2): the loop would only spin."""
        self._report(error, "cannot accept, clients wait")
        self.context.check_listeners()
        if error.errno == errno.EMFILE:
            self.context.check_descriptors()
        self._resume_in(self.error_pause)
        self.error_pause = min(self.error_pause * 2, MAX_ERROR_PAUSE)

    def _report(self, error: OSError, what: str) -> None:
        name = errno.errorcode.get(error.errno or 0, "")
        message = f"{what}: {os.strerror(error.errno or 0)} ({name})"
        record = Record("warning", message, service=self.service.name)
        self.context.flood_gate.report((self.service.name, name), record)
