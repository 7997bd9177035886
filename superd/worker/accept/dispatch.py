"""What takes the clients of a listener, and how their sessions start: by the service's methods, and
the address.

Runs in the worker: chosen when it begins to serve, called for each client. Never raises.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from superd.admission.gate import Ticket
from superd.net.addresses import Address, Transport
from superd.worker.accept.acceptor import BATCH, STARTS, Accepted, Acceptor
from superd.worker.blocking.session import BlockingSession
from superd.worker.runtime.service import Serving
from superd.worker.serve.datagram import Answering, DatagramListener
from superd.worker.serve.flow import FlowListener
from superd.worker.serve.listener import Handover
from superd.worker.serve.relay import RelayedSession
from superd.worker.serve.respond import Answerer
from superd.worker.serve.stream import ProtocolSession, advance
from superd.worker.serve.takeover import take_over

if TYPE_CHECKING:
    from superd.worker.engine import Engine

Listener = Acceptor | DatagramListener | Handover
Dispatch = Callable[[Any, Any, Ticket, str], None]

GO = b"+Go\r\n"  # RFC 1078


def listener_for(
    engine: Engine, serving: Serving, address: Address, sock: socket.socket
) -> Listener:
    """Return what serves one of a service's sockets, to be started."""
    answers = serving.relay_datagrams or serving.datagram or serving.respond
    is_datagram = address.transport.is_datagram
    if serving.listener and (serving.entry.wait or (is_datagram and not answers)):
        return Handover(engine, serving, address, sock)
    if is_datagram:
        made = FlowListener if serving.relay_datagrams else Answering
        return made(engine, serving, address, sock, engine.guard)
    kind = address.transport.of_clients
    start = _starter(engine, serving, kind)
    if start is None:
        dispatch = _greeting(address, Answerer(engine, serving, kind).dispatch)
        return Acceptor(engine, serving, address, sock, dispatch, socket.SocketType)
    make = socket.SocketType if serving.relay else Accepted
    crew = engine.crews.get(serving)
    batch = STARTS if serving.entry.forks or serving.takeover else BATCH
    return Acceptor(engine, serving, address, sock, _greeting(address, start), make, crew, batch)


def _greeting(address: Address, start: Dispatch) -> Dispatch:
    """Have who comes by tcpmux be told that it may go on, where the service does not do so."""
    if address.transport is not Transport.TCPMUX or not address.greets:
        return start

    def greet(sock: Any, sockaddr: Any, ticket: Ticket, local: str) -> None:
        with contextlib.suppress(OSError):  # it has gone, as will be seen
            sock.send(GO, socket.MSG_DONTWAIT)
        start(sock, sockaddr, ticket, local)

    return greet


def _starter(engine: Engine, serving: Serving, kind: Transport) -> Dispatch | None:
    """Choose how sessions of a service start: see the steps of `superd.plugin.Service`. None where
    clients have their answer without one.
    """

    def relay(sock: socket.SocketType, sockaddr: Any, ticket: Ticket, local: str) -> None:
        session = RelayedSession()
        session.begin(engine, serving, kind, sockaddr, ticket, local)
        session.give(sock)

    def delegate(sock: socket.socket, sockaddr: Any, ticket: Ticket, local: str) -> None:
        session = BlockingSession()
        session.begin(engine, serving, kind, sockaddr, ticket, local)
        session.give(sock, engine.crews[serving])

    def attach(sock: socket.socket, sockaddr: Any, ticket: Ticket, local: str) -> None:
        session = ProtocolSession()
        session.begin(engine, serving, kind, sockaddr, ticket, local)
        advance(session.attach(sock))

    def give(sock: socket.socket, sockaddr: Any, ticket: Ticket, local: str) -> None:
        take_over(engine, serving, kind, sock, sockaddr, ticket, local)

    if serving.relay:
        return relay
    if serving.blocking:
        return delegate
    if serving.protocol or serving.stream:
        return attach
    return give if serving.takeover else None
