"""What takes the clients of a listener, and how their sessions start: by the service's methods, and
the address.

Runs in the worker: chosen when it begins to serve, called for each client. Never raises.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

from superd.admission.gate import Ticket
from superd.net.addresses import Address, Transport
from superd.worker.accept.acceptor import BATCH, STARTS, Accepted, Acceptor
from superd.worker.blocking.session import BlockingSession, Executor
from superd.worker.runtime.context import Context, ServedSocket
from superd.worker.runtime.service import WorkerService
from superd.worker.serve.datagram import DatagramResponder
from superd.worker.serve.flow import FlowListener
from superd.worker.serve.listener import ListenerHandoff
from superd.worker.serve.relay import RelayedSession
from superd.worker.serve.respond import Responder
from superd.worker.serve.stream import ProtocolSession, advance
from superd.worker.serve.takeover import take_over

Dispatch = Callable[[Any, Any, Ticket, str], None]

GO = b"+Go\r\n"  # RFC 1078


def socket_server(
    context: Context,
    service: WorkerService,
    address: Address,
    sock: socket.socket,
    executor: Executor | None,
) -> ServedSocket:
    """Return what serves one of a service's sockets, to be started."""
    answers = service.relay_datagrams or service.datagram or service.respond
    is_datagram = address.transport.is_datagram
    if service.listener and (service.entry.wait or (is_datagram and not answers)):
        return ListenerHandoff(context, service, address, sock)
    if is_datagram:
        made = FlowListener if service.relay_datagrams else DatagramResponder
        return made(context, service, address, sock, context.guard)
    kind = address.transport.client_transport
    start = _starter(context, service, kind, executor)
    if start is None:
        dispatch = _greeting(address, Responder(context, service, kind).dispatch)
        return Acceptor(context, service, address, sock, dispatch, socket.SocketType)
    make = socket.SocketType if service.relay else Accepted
    batch = STARTS if service.entry.forks or service.takeover else BATCH
    return Acceptor(
        context, service, address, sock, _greeting(address, start), make, executor, batch
    )


def _greeting(address: Address, start: Dispatch) -> Dispatch:
    """Have who comes by tcpmux be told that it may go on, where the service does not do so."""
    if address.transport is not Transport.TCPMUX or not address.greets:
        return start

    def greet(sock: Any, sockaddr: Any, ticket: Ticket, local: str) -> None:
        with contextlib.suppress(OSError):  # it has gone, as will be seen
            sock.send(GO, socket.MSG_DONTWAIT)
        start(sock, sockaddr, ticket, local)

    return greet


def _starter(
    context: Context, service: WorkerService, kind: Transport, executor: Executor | None
) -> Dispatch | None:
    """Choose how sessions of a service start: see the steps of `superd.plugin.Service`. None where
    clients have their answer without one.
    """

    def relay(sock: socket.SocketType, sockaddr: Any, ticket: Ticket, local: str) -> None:
        session = RelayedSession()
        session.begin(context, service, kind, sockaddr, ticket, local)
        session.give(sock)

    def delegate(sock: socket.socket, sockaddr: Any, ticket: Ticket, local: str) -> None:
        assert executor is not None
        session = BlockingSession()
        session.begin(context, service, kind, sockaddr, ticket, local)
        session.give(sock, executor)

    def attach(sock: socket.socket, sockaddr: Any, ticket: Ticket, local: str) -> None:
        session = ProtocolSession()
        session.begin(context, service, kind, sockaddr, ticket, local)
        advance(session.attach(sock))

    def give(sock: socket.socket, sockaddr: Any, ticket: Ticket, local: str) -> None:
        take_over(context, service, kind, sock, sockaddr, ticket, local)

    if service.relay:
        return relay
    if service.blocking:
        return delegate
    if service.protocol or service.stream:
        return attach
    return give if service.takeover else None
