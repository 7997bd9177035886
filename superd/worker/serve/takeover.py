"""Connections whose raw socket a plugin takes over.

Runs in the worker, on the loop. Where there are too few descriptors for the plugin to begin, its
client waits. When the plugin has returned, what it sent is delivered and the socket closed. Never
raises.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import sys
from functools import partial
from typing import Any

from superd.admission.gate import Ticket
from superd.net.addresses import Transport
from superd.net.closing import reset_on_close
from superd.net.passing import pass_socket
from superd.net.timeouts import NO_TIMEOUT
from superd.observe.connections import End
from superd.observe.records import Record
from superd.plugin.connection import LONGEST_LINE, Connection
from superd.worker.runtime.context import Context
from superd.worker.runtime.service import WorkerService
from superd.worker.serve.session import SLOTS, Session

RETRY = 0.05  # seconds until a client is tried again for whom there were no descriptors
PAUSE = 2 * RETRY  # that others wait in the backlog: longer, so that none is accepted meanwhile
GONE = select.POLLHUP | select.POLLERR
LINUX = sys.platform == "linux"
TCP_INFO_SIZE = 136  # of struct tcp_info, up to tcpi_bytes_received (tcp(7))

# states of tcp (tcp_states.h): the end of the stream has come from the client, or has got there;
# it was counted as a byte
END_HAS_COME = frozenset((6, 8, 9, 11))  # TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING
END_HAS_GONE = frozenset((5, 6))  # FIN_WAIT2, TIME_WAIT


def bytes_of(sock: socket.socket) -> tuple[int, int] | None:
    """Return how many bytes came and went, as the kernel counts them for tcp on Linux."""
    if sock.family in (socket.AF_INET, socket.AF_INET6) and LINUX:
        with contextlib.suppress(OSError):
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
            sent, received = struct.unpack_from("@QQ", info, TCP_INFO_SIZE - 16)
            state = info[0]
            return received - (state in END_HAS_COME), sent - (state in END_HAS_GONE)
    return None


def take_over(
    context: Context,
    service: WorkerService,
    kind: Transport,
    sock: socket.socket,
    sockaddr: Any,
    ticket: Ticket,
    local: str,
) -> None:
    """Have the plugin take over a client; where it could not begin, this one and others wait."""
    try:
        if service.plugin.descriptors:
            _keep_free(context, sock, service.plugin.descriptors)
    except OSError as error:
        text = f"clients wait: {os.strerror(error.errno or 0)}"
        record = Record("warning", text, service=service.name)
        context.flood_gate.report((service.name, error.errno), record)
        if error.errno == errno.EMFILE:
            context.check_descriptors()
        again = partial(take_over, context, service, kind, sock, sockaddr, ticket, local)
        service.pause(PAUSE)
        context.hold(RETRY, again)
        return
    session = TakenSession()
    session.begin(context, service, kind, sockaddr, ticket, local)
    session.give(sock)


def _keep_free(context: Context, sock: socket.socket, number: int) -> None:
    """See that so many descriptors are left when the loop turns, whoever else is accepted until
    then; OSError if not.
    """
    with contextlib.ExitStack() as kept:
        for _ in range(number):
            kept.callback(os.close, os.dup(sock.fileno()))
        os.close(os.dup(sock.fileno()))  # and one now: see `give`
        context.loop.call_soon(kept.pop_all().close)


class TakenSession(Session, Connection):
    """A connection that superd only books; the plugin reads and writes the socket itself."""

    __slots__ = (*SLOTS, "is_known", "kept", "sock")

    sock: socket.socket | None
    kept: socket.socket | None
    is_known: bool  # what came and went

    def give(self, sock: socket.socket) -> None:
        """Let the plugin have the socket, without the time-out that the listener has.

        Where the entry's time-outs ask what comes and goes, it is kept for them once more: a plugin
        may close its own and leave the client to a program.
        """
        self.sock, self.kept, self.is_known = sock, None, False
        entry, takeover = self.worker_service.entry, self.worker_service.takeover
        assert takeover is not None
        try:
            if entry.first_byte_timeout or entry.idle_timeout:
                self.kept = sock.dup()
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, NO_TIMEOUT)
            self.run(takeover(sock, self))
        except BaseException as error:  # noqa: BLE001  takeover() may not take two arguments
            self.contain(error)
            self.leave()

    def raw_socket(self) -> socket.socket | None:
        return self.sock

    @property
    def is_lost(self) -> bool:
        return self.sock is None

    def progress(self) -> tuple[int, int]:
        """Ask the kernel; where that does not tell, the connection counts as never idle."""
        self._count()
        return self.passed or (1, int(self.context.loop.time() * 1000))

    @property
    def passed(self) -> tuple[int, int] | None:
        return (self.received, self.sent) if self.is_known else None

    @property
    def _open(self) -> socket.socket | None:
        """The connection's socket, if it is open here."""
        found = (sock for sock in (self.sock, self.kept) if sock is not None and sock.fileno() >= 0)
        return next(found, None)

    def _count(self) -> None:
        """Learn from the kernel how many bytes came and went, if it tells; the socket may be
        elsewhere by now. What was known when it ended, or was cut, stays.
        """
        if self.sock is None or self.end not in (None, End.ERROR):
            return
        found = self._open
        counted = None if found is None else bytes_of(found)
        self.is_known = counted is not None
        self.received, self.sent = counted or (0, 0)

    @property
    def has_gone(self) -> bool:
        sock = self._open
        if sock is None:
            return True
        poll = select.poll()
        poll.register(sock, 0)
        return any(events & GONE for _, events in poll.poll(0))

    def finish(self) -> None:
        self._count()
        sock, self.sock = self.sock, None
        self._let_go()
        if sock is None or sock.fileno() < 0:
            return  # the plugin has closed it, or given it to somebody else
        self.linger(sock)

    def expire(self, end: End) -> None:
        """End the talk; the plugin may be at the socket just now, so it is closed after that."""
        self._count()
        self.end = self.end or end
        if (sock := self._open) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if self.task is not None:
            self.task.cancel()

    def abort(self) -> None:
        self._count()
        if (sock := self._open) is not None:
            reset_on_close(sock)
            sock.close()
        self.sock = None
        self._let_go()

    def pass_on(self, entrance: socket.socket) -> bool:
        """Have another service go on, which is to find it counted by nobody."""
        assert self.sock is not None
        self.release_slots()
        try:
            pass_socket(entrance, self.sock)
        except OSError:
            return False
        self._let_go()
        self.sock.close()
        return True

    def _let_go(self) -> None:
        if self.kept is not None:
            self.kept.close()
            self.kept = None

    def close(self) -> None:
        self.finish()

    async def read(self, limit: int = 65536) -> bytes:
        raise RuntimeError(_OWN)

    async def readline(self, limit: int = LONGEST_LINE) -> bytes:
        raise RuntimeError(_OWN)

    async def send(self, data: bytes) -> None:
        raise RuntimeError(_OWN)

    def send_eof(self) -> None:
        raise RuntimeError(_OWN)


_OWN = "the plugin has taken over the socket; it reads and writes there"
