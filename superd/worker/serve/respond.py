"""Services that answer a connection at once and close: `respond` over tcp and unix.

Runs in the worker, on the loop. Makes no transport: one send, one shutdown, and then a lingering
close. Never raises.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from superd.admission.gate import Ticket
from superd.admission.scoreboard import Count
from superd.net.addresses import Address, Transport
from superd.net.closing import reset_on_close
from superd.observe.connections import End
from superd.plugin.service import Request
from superd.worker.runtime.context import Context
from superd.worker.runtime.linger import SEND_WITH_END, close_socket
from superd.worker.runtime.service import WorkerService
from superd.worker.serve.session import report_failure
from superd.worker.serve.stream import ProtocolSession, advance

UNLIMITED = 1 << 62  # bytes that an answer over a stream may have

_BYTES_OUT = int(Count.BYTES_OUT)


class Responder:
    """Answers the connections of one service."""

    def __init__(self, context: Context, service: WorkerService, kind: Transport) -> None:
        assert service.respond is not None
        self.respond = service.respond
        self.context = context
        self.service = service
        self.kind = kind

    def dispatch(self, sock: socket.SocketType, sockaddr: Any, ticket: Ticket, local: str) -> None:
        """Answer; make a session only if the answer does not fit into the socket at once."""
        service = self.service
        try:
            answer = self.respond(Request(b"", UNLIMITED, self.kind, sockaddr, sock))
            if not isinstance(answer, bytes):
                raise TypeError(f"respond() returned {type(answer).__name__}, not bytes")
            size = len(answer)
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            self._fail(sock, sockaddr, ticket, local, error)
            return
        try:
            sent = sock.send(answer, SEND_WITH_END) if size else 0
            if sent < size:
                service.counts[_BYTES_OUT] += sent
                self._send_rest(sock, sockaddr, answer[sent:], ticket, local)
                return
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client has closed
            self.context.accounting.answered(service, self.kind, sockaddr, local, 0, End.RESET)
            close_socket(sock, service, ticket)
        else:
            self.context.accounting.answered(service, self.kind, sockaddr, local, size, End.SERVER)
            self.context.lingering.add(sock, service, ticket)

    def _fail(
        self,
        sock: socket.SocketType,
        sockaddr: Any,
        ticket: Ticket,
        local: str,
        error: BaseException,
    ) -> None:
        context, service = self.context, self.service
        connection = context.accounting.answered(service, self.kind, sockaddr, local, 0, End.ERROR)
        peer = Address.from_sockaddr(self.kind, sockaddr)
        report_failure(context, service, error, connection, peer)
        reset_on_close(sock)
        close_socket(sock, service, ticket)

    def _send_rest(
        self, sock: socket.SocketType, sockaddr: Any, rest: bytes, ticket: Ticket, local: str
    ) -> None:
        whole = socket.socket(fileno=sock.detach())
        session = ProtocolSession()
        session.begin(self.context, self.service, self.kind, sockaddr, ticket, local)
        advance(session.attach(whole, RestSender(rest)))


class RestSender(asyncio.Protocol):
    """Sends the rest of an answer, and closes."""

    def __init__(self, rest: bytes) -> None:
        self.rest = rest

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self.rest)
        transport.close()
