"""Services that answer a connection at once and close: `respond` over tcp and unix.

Runs in the worker, on the loop. Makes no transport: one send, one shutdown, and then the socket
lingers until the client has closed too, since input that is unread at close would make the kernel
send a reset and lose the answer. Never raises.
"""

from __future__ import annotations

import asyncio
import select
import socket
from typing import TYPE_CHECKING, Any

from superd.admission.gate import Ticket
from superd.admission.scoreboard import Count, duration_column
from superd.net.addresses import Address, Transport
from superd.net.closing import reset_on_close, undelivered
from superd.observe.connections import End, ends_of
from superd.plugin.service import Request
from superd.worker.protocols import LINGER, PATIENCE, ProtocolSession, advance
from superd.worker.scratch import SCRATCH
from superd.worker.serving import Serving
from superd.worker.session import (
    connection_id,
    endpoint_text,
    report_failure,
)

if TYPE_CHECKING:
    from superd.worker.engine import Engine

UNLIMITED = 1 << 62
# tcp(7): what is sent waits for the end of the stream, to go out in one segment with it
WITH_THE_END = socket.MSG_DONTWAIT | getattr(socket, "MSG_MORE", 0)
FIRST_LOOK = 0.001  # seconds until sockets that linger are looked at for the first time
LOOK = 0.02  # seconds between looks at those that went on lingering

_BYTES_OUT = int(Count.BYTES_OUT)
_SHORTEST = duration_column(0.0)


class Answerer:
    """Answers the connections of one service."""

    def __init__(self, engine: Engine, serving: Serving, kind: Transport) -> None:
        assert serving.respond is not None
        self.respond = serving.respond
        self.engine = engine
        self.serving = serving
        self.kind = kind

    def dispatch(self, sock: socket.SocketType, sockaddr: Any, ticket: Ticket, local: str) -> None:
        """Answer; a session is made only where the answer does not fit into the socket at once."""
        serving = self.serving
        try:
            answer = self.respond(Request(b"", UNLIMITED, self.kind, sockaddr, sock))
            if not isinstance(answer, bytes):
                raise TypeError(f"respond() returned {type(answer).__name__}, not bytes")
            size = len(answer)
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            self._fail(sock, sockaddr, ticket, local, error)
            return
        try:
            sent = sock.send(answer, WITH_THE_END) if size else 0
            if sent < size:
                serving.counts[_BYTES_OUT] += sent
                self._send_rest(sock, sockaddr, answer[sent:], ticket, local)
                return
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()  # the client has gone
            self._book(sockaddr, ticket, local, 0, End.RESET)
        else:
            self.engine.lingering.add(sock)
            self._book(sockaddr, ticket, local, size, End.SERVER)

    def _book(self, sockaddr: Any, ticket: Ticket, local: str, sent: int, end: End) -> str:
        """Count and record a connection that is over; return its id."""
        serving = self.serving
        serving.counts[_BYTES_OUT] += sent
        serving.counts[_SHORTEST] += 1
        number = connection_id(self.engine, self.engine.next_number())
        ends = ends_of(number, endpoint_text(self.kind, sockaddr), local)
        serving.records.answered(ends, sent, end.value)
        serving.gate.leave(ticket)
        return number

    def _fail(
        self,
        sock: socket.SocketType,
        sockaddr: Any,
        ticket: Ticket,
        local: str,
        error: BaseException,
    ) -> None:
        number = self._book(sockaddr, ticket, local, 0, End.ERROR)
        peer = Address.of_socket(self.kind, sockaddr)
        report_failure(self.engine, self.serving, error, number, peer)
        reset_on_close(sock)
        sock.close()

    def _send_rest(
        self, sock: socket.SocketType, sockaddr: Any, rest: bytes, ticket: Ticket, local: str
    ) -> None:
        whole = socket.socket(fileno=sock.detach())
        session = ProtocolSession()
        session.begin(self.engine, self.serving, self.kind, sockaddr, ticket, local)
        advance(session.attach(whole, Remainder(rest)))


class Remainder(asyncio.Protocol):
    """Sends what was left of an answer, and closes."""

    def __init__(self, rest: bytes) -> None:
        self.rest = rest

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self.rest)
        transport.close()


class Lingering:
    """Sockets that have been answered and wait for the client to close, a second at most; longer
    only for a client that still takes what the kernel has for it.

    Most clients have closed a moment later, when all that are new are looked at together: that
    costs less than to have the loop wake up for each. The others are looked at some times a second.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.epoll = select.epoll()
        self._new: list[socket.SocketType] = []
        # by descriptor, the next whose time is over first: when that is, and when at the latest
        self._slow: dict[int, tuple[float, float, socket.SocketType]] = {}

    def __len__(self) -> int:
        return len(self._new) + len(self._slow)

    def finish(self, sock: socket.SocketType) -> None:
        """Say that nothing more is sent, and linger."""
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()  # the client has gone
        else:
            self.add(sock)

    def add(self, sock: socket.SocketType) -> None:
        """Linger at a socket that sends no more."""
        if not self._new:
            self.engine.loop.call_later(FIRST_LOOK, self._look_at_new)
        self._new.append(sock)

    def _look_at_new(self) -> None:
        new, self._new = self._new, []
        for sock in new:
            if _has_closed(sock):
                sock.close()
            else:
                self._wait_for(sock)
        self.engine.end_if_drained()

    def _wait_for(self, sock: socket.SocketType) -> None:
        if not self._slow:
            self.engine.loop.call_later(LOOK, self._look_at_slow)
        descriptor, now = sock.fileno(), self.engine.loop.time()
        self._slow[descriptor] = (now + LINGER, now + PATIENCE, sock)
        self.epoll.register(descriptor, select.EPOLLIN)

    def _look_at_slow(self) -> None:
        slow = self._slow
        for descriptor, _ in self.epoll.poll(0, len(slow)):
            # closing takes a socket out of the epoll, but for one that a program has, too
            if descriptor in slow and _has_closed(slow[descriptor][2]):
                slow.pop(descriptor)[2].close()
        now = self.engine.loop.time()
        while slow:
            descriptor, (deadline, end, sock) = next(iter(slow.items()))
            if deadline > now:
                break
            del slow[descriptor]
            if end > now and undelivered(sock):
                slow[descriptor] = (now + LINGER, end, sock)
            else:
                sock.close()
        if slow:
            self.engine.loop.call_later(LOOK, self._look_at_slow)
        else:
            self.engine.end_if_drained()


def _has_closed(sock: socket.SocketType) -> bool:
    """Read away what the client still sends; tell whether it has closed."""
    try:
        return sock.recv_into(SCRATCH, 0, socket.MSG_DONTWAIT) == 0
    except BlockingIOError:
        return False
    except OSError:
        return True
