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

from superd.admission.scoreboard import Count
from superd.net.addresses import Address, Transport
from superd.plugin.service import Request
from superd.worker.protocols import LINGER, PATIENCE, ProtocolSession, advance
from superd.worker.serving import Serving
from superd.worker.session import connection_id, report_failure, reset_on_close, undelivered

if TYPE_CHECKING:
    from superd.worker.engine import Engine

UNLIMITED = 1 << 62
LOOK = 0.02  # seconds between looks at the sockets that linger

_BYTES_OUT = int(Count.BYTES_OUT)


class Answerer:
    """Answers the connections of one service."""

    def __init__(self, engine: Engine, serving: Serving, kind: Transport) -> None:
        assert serving.respond is not None
        self.respond = serving.respond
        self.engine = engine
        self.serving = serving
        self.kind = kind

    def dispatch(self, sock: socket.SocketType, sockaddr: Any) -> None:
        """Answer; a session is made only where the answer does not fit into the socket at once."""
        try:
            answer = self.respond(Request(b"", UNLIMITED, self.kind, sockaddr, sock))
            if not isinstance(answer, bytes):
                raise TypeError(f"respond() returned {type(answer).__name__}, not bytes")
            size = len(answer)
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            peer = Address.of_socket(self.kind, sockaddr)
            number = connection_id(self.engine, self.engine.next_number())
            report_failure(self.engine, self.serving, error, number, peer)
            reset_on_close(sock)
            sock.close()
            return
        try:
            sent = sock.send(answer, socket.MSG_DONTWAIT) if size else 0
            if sent < size:
                self._send_rest(sock, sockaddr, answer[sent:])
            else:
                sock.shutdown(socket.SHUT_WR)
                self.engine.lingering.add(sock)
        except OSError:
            sock.close()  # the client has gone
            return
        self.serving.counts[_BYTES_OUT] += sent

    def _send_rest(self, sock: socket.SocketType, sockaddr: Any, rest: bytes) -> None:
        whole = socket.socket(fileno=sock.detach())
        session = ProtocolSession()
        session.begin(self.engine, self.serving, self.kind, sockaddr)
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

    They are looked at together, some times a second: most clients have closed by then, and a
    look at all costs less than to have the loop wake up for each.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.epoll = select.epoll()
        # by descriptor, the next to be looked at first: when that is, and when it is over
        self.sockets: dict[int, tuple[float, float, socket.SocketType]] = {}
        self._unread = bytearray(1 << 16)

    def add(self, sock: socket.SocketType) -> None:
        if not self.sockets:
            self.engine.loop.call_later(LOOK, self._look)
        descriptor, now = sock.fileno(), self.engine.loop.time()
        self.sockets[descriptor] = (now + LINGER, now + PATIENCE, sock)
        self.epoll.register(descriptor, select.EPOLLIN)

    def _look(self) -> None:
        sockets = self.sockets
        for descriptor, _ in self.epoll.poll(0, len(sockets)):
            # closing takes a socket out of the epoll, but for one that a program has, too
            if descriptor in sockets and self._has_closed(sockets[descriptor][2]):
                sockets.pop(descriptor)[2].close()
        now = self.engine.loop.time()
        while sockets:
            descriptor, (deadline, end, sock) = next(iter(sockets.items()))
            if deadline > now:
                break
            del sockets[descriptor]
            if end > now and undelivered(sock):
                sockets[descriptor] = (now + LINGER, end, sock)
            else:
                sock.close()
        if sockets:
            self.engine.loop.call_later(LOOK, self._look)
        else:
            self.engine.end_if_drained()

    def _has_closed(self, sock: socket.SocketType) -> bool:
        """Read away what the client still sends; tell whether it has closed."""
        try:
            return sock.recv_into(self._unread, 0, socket.MSG_DONTWAIT) == 0
        except BlockingIOError:
            return False
        except OSError:
            return True
