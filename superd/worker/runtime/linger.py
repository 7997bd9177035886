"""The lingering close: sockets that send no more and wait until their client has closed as well.

Runs in the worker, on the loop. Unread input at close(2) would make the kernel send a reset, which
can destroy an answer that the client has not read yet. Never raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Callable
from typing import NamedTuple

from superd.admission.gate import NO_SOURCE, Ticket
from superd.net.closing import undelivered, unread
from superd.worker.runtime.scratch import SCRATCH
from superd.worker.runtime.service import WorkerService

LINGER_TIMEOUT = 1.0  # seconds that unread input is still read, once everything is sent
STALLED_CLIENT_TIMEOUT = 30.0  # seconds that a client may take no byte of what is left for it
FIRST_CHECK_DELAY = 0.001  # seconds until new sockets are checked for the first time
CHECK_INTERVAL = 0.1  # seconds between checks of which sockets have timed out
MAX_READY = 64  # sockets that are checked in one turn of the loop
# tcp(7): the kernel holds the bytes back, to send them in one segment with the FIN
SEND_WITH_END = socket.MSG_DONTWAIT | getattr(socket, "MSG_MORE", 0)


class LingeringSocket(NamedTuple):
    """A socket whose client has not closed yet, and the slots in the limits that it still has."""

    deadline: float  # by the loop's time
    stalled_deadline: float  # from then on it is closed unless the kernel still has bytes for it
    sock: socket.SocketType
    service: WorkerService | None
    ticket: Ticket


class Lingering:
    """The sockets that wait for their client to close: a second at most, or longer for a client
    that still takes what the kernel has for it. Until then each counts against every limit of its
    service, unless its client was refused.

    Most clients close within a millisecond, so new sockets are checked together after that: this
    costs less than waking the loop up for each. The loop watches the sockets that linger longer,
    and all of them where there are limits, since the next client may need the slot.

    `on_change` is called when sockets were closed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], object]) -> None:
        self.epoll = select.epoll()
        self._loop = loop
        self._on_change = on_change
        self._new: list[tuple[socket.SocketType, WorkerService | None, Ticket]] = []
        self._watched: dict[int, LingeringSocket] = {}  # by descriptor, the next deadline first
        self._is_watching = False

    def __len__(self) -> int:
        return len(self._new) + len(self._watched)

    def finish(
        self,
        sock: socket.SocketType,
        service: WorkerService | None = None,
        ticket: Ticket = NO_SOURCE,
    ) -> None:
        """Shut a socket down for sending, and linger."""
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client has closed already
            close_socket(sock, service, ticket)
        else:
            self.add(sock, service, ticket)

    def add(self, sock: socket.SocketType, service: WorkerService | None, ticket: Ticket) -> None:
        """Linger with a socket that is shut down for sending. `service` is None for a client
        without slots in the limits.
        """
        if service is not None and service.gate.scopes:
            self._watch(sock, service, ticket)
            self._check_ready()  # the next client may be accepted before the loop does this
            return
        if not self._new:
            self._loop.call_later(FIRST_CHECK_DELAY, self._check_new)
        self._new.append((sock, service, ticket))

    def deliver(
        self,
        sock: socket.SocketType,
        service: WorkerService | None = None,
        ticket: Ticket = NO_SOURCE,
    ) -> None:
        """Close a socket that another process may use, so that it must be neither read nor shut
        down: at once, or, where unread input would make this a reset, once all is delivered.
        """
        if unread(sock) and undelivered(sock):
            self._watch(sock, service, ticket, is_read=False)
        else:
            close_socket(sock, service, ticket)

    def close_half(self) -> None:
        """Close the older half of the sockets: descriptors are needed elsewhere."""
        by_age = sorted(self._watched, key=lambda number: self._watched[number].stalled_deadline)
        for descriptor in by_age[: (len(by_age) + 1) // 2]:
            self._close(descriptor)

    def _check_new(self) -> None:
        new, self._new = self._new, []
        for sock, service, ticket in new:
            if _has_closed(sock):
                close_socket(sock, service, ticket)
            else:
                self._watch(sock, service, ticket)
        self._on_change()

    def _watch(
        self,
        sock: socket.SocketType,
        service: WorkerService | None,
        ticket: Ticket,
        *,
        is_read: bool = True,
    ) -> None:
        loop = self._loop
        if not self._is_watching:
            self._is_watching = True
            loop.add_reader(self.epoll.fileno(), self._on_readable)
            loop.call_later(CHECK_INTERVAL, self._check_deadlines)
        descriptor, now = sock.fileno(), loop.time()
        deadline, stalled_deadline = now + LINGER_TIMEOUT, now + STALLED_CLIENT_TIMEOUT
        lingering = LingeringSocket(deadline, stalled_deadline, sock, service, ticket)
        self._watched[descriptor] = lingering
        if is_read:
            with contextlib.suppress(OSError):  # without memory for it, its deadline will close it
                self.epoll.register(descriptor, select.EPOLLIN)

    def _on_readable(self) -> None:
        self._check_ready()
        self._on_change()

    def _check_ready(self) -> None:
        for descriptor, _ in self.epoll.poll(0, MAX_READY):
            if _has_closed(self._watched[descriptor].sock):
                self._close(descriptor)

    def _check_deadlines(self) -> None:
        watched, now = self._watched, self._loop.time()
        while watched:
            descriptor, first = next(iter(watched.items()))
            if first.deadline > now:
                break
            if first.stalled_deadline > now and undelivered(first.sock):
                del watched[descriptor]
                watched[descriptor] = first._replace(deadline=now + LINGER_TIMEOUT)
            else:
                self._close(descriptor)
        if watched:
            self._loop.call_later(CHECK_INTERVAL, self._check_deadlines)
        else:
            self._is_watching = False
            self._loop.remove_reader(self.epoll.fileno())
            self._on_change()

    def _close(self, descriptor: int) -> None:
        lingering = self._watched.pop(descriptor)
        with contextlib.suppress(OSError):
            self.epoll.unregister(descriptor)  # close(2) does not, where a program has it as well
        close_socket(lingering.sock, lingering.service, lingering.ticket)


def close_socket(sock: socket.SocketType, service: WorkerService | None, ticket: Ticket) -> None:
    """Close a client's socket, and release its slots in the limits, if it has any."""
    sock.close()
    if service is not None:
        service.release(ticket)


def _has_closed(sock: socket.SocketType) -> bool:
    """Discard what the client still sends; return whether it has closed."""
    try:
        return sock.recv_into(SCRATCH, 0, socket.MSG_DONTWAIT) == 0
    except BlockingIOError:
        return False
    except OSError:
        return True
