"""Chooses what serves a socket and how its sessions start, by the methods of the service.

Runs in the worker: `served_socket` once for each socket, the functions that start sessions once for
each connection. Never raises.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

from superd.admission.gate import Ticket
from superd.net.addresses import Address, Transport
from superd.worker.accept.acceptor import MAX_BATCH, MAX_PROCESS_BATCH, AcceptedSocket, Acceptor
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

TCPMUX_ACCEPTED = b"+Go\r\n"  # RFC 1078


def served_socket(
    context: Context,
    service: WorkerService,
    address: Address,
    sock: socket.socket,
    executor: Executor | None,
) -> ServedSocket:
    """Return what serves one of a service's sockets; it has yet to be started."""
    answers_datagrams = service.relay_datagrams or service.datagram or service.respond
    is_datagram = address.transport.is_datagram
    if service.listener and (service.entry.wait or (is_datagram and not answers_datagrams)):
        return ListenerHandoff(context, service, address, sock)
    if is_datagram:
        if service.relay_datagrams:
            return FlowListener(context, service, address, sock, context.guard)
        return DatagramResponder(context, service, address, sock, context.guard)
    kind = address.transport.client_transport
    start = _starter(context, service, kind, executor)
    if start is None:
        dispatch = _with_greeting(address, Responder(context, service, kind).dispatch)
        return Acceptor(context, service, address, sock, dispatch, socket.SocketType)
    make = socket.SocketType if service.relay else AcceptedSocket
    batch = MAX_PROCESS_BATCH if service.entry.forks or service.takeover else MAX_BATCH
    return Acceptor(
        context, service, address, sock, _with_greeting(address, start), make, executor, batch
    )


def _with_greeting(address: Address, start: Dispatch) -> Dispatch:
    """Answer `+Go` to clients of tcpmux before dispatch, unless the service does so itself."""
    if address.transport is not Transport.TCPMUX or not address.greets:
        return start

    def greet(sock: Any, sockaddr: Any, ticket: Ticket, local: str) -> None:
        with contextlib.suppress(OSError):  # the client has closed, which the session finds out
            sock.send(TCPMUX_ACCEPTED, socket.MSG_DONTWAIT)
        start(sock, sockaddr, ticket, local)

    return greet


def _starter(
    context: Context, service: WorkerService, kind: Transport, executor: Executor | None
) -> Dispatch | None:
    """Return how sessions of a service start, as `superd.plugin.Service` documents; None where a
    connection is answered without a session.
    """

    def start_relay(sock: socket.SocketType, sockaddr: Any, ticket: Ticket, local: str) -> None:
        session = RelayedSession()
        session.begin(context, service, kind, sockaddr, ticket, local)
        session.start(sock)

    def start_blocking(sock: socket.socket, sockaddr: Any, ticket: Ticket, local: str) -> None:
        assert executor is not None
        session = BlockingSession()
        session.begin(context, service, kind, sockaddr, ticket, local)
        session.start(sock, executor)

    def start_protocol(sock: socket.socket, sockaddr: Any, ticket: Ticket, local: str) -> None:
        session = ProtocolSession()
        session.begin(context, service, kind, sockaddr, ticket, local)
        advance(session.attach(sock))

    def start_takeover(sock: socket.socket, sockaddr: Any, ticket: Ticket, local: str) -> None:
        take_over(context, service, kind, sock, sockaddr, ticket, local)

    if service.relay:
        return start_relay
    if service.blocking:
        return start_blocking
    if service.protocol or service.stream:
        return start_protocol
    return start_takeover if service.takeover else None
