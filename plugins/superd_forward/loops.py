"""Forwarding loops: a service that forwards to itself, perhaps by way of other services.

Each socket that a forward in this process connects to a port that superd listens on, or to a unix
socket, is registered with the services that its client has passed through. A client that connects
from such a socket has passed through the same services, so a service finds itself in the chain. An
undetected loop would soon use up all descriptors.
"""

from __future__ import annotations

import socket
from typing import Any

from superd.plugin import Address, Transport

# A host, its port and the port that it is connected to: the kernel assigns one port to several
# connections with different destinations. Or a path, and 0 twice.
Endpoint = tuple[str, int, int]
Chain = tuple[object, ...]

LOOP = "forwarding loop: the target leads back to this service"

_chains: dict[Endpoint, Chain] = {}


def chain_of(sock: socket.SocketType) -> Chain:
    """Return the services that a client has passed through."""
    if not _chains:
        return ()
    try:
        return chain_from(_endpoint(sock.getpeername(), _port(sock.getsockname())))
    except OSError:  # the client has closed
        return ()


def chain_from(endpoint: Endpoint) -> Chain:
    """Return the services that a client at an endpoint has passed through."""
    return _chains.get(endpoint, ())


def _port(name: Any) -> int:
    return name[1] if isinstance(name, tuple) else 0


def _endpoint(name: Any, port: int) -> Endpoint:
    if isinstance(name, tuple):
        return name[0], name[1], port
    return Address.from_sockaddr(Transport.UNIX, name).path, 0, port


def register(sock: socket.SocketType, port: int, chain: Chain) -> Endpoint:
    """Register the chain of a socket of ours that is connected to `port`."""
    endpoint = _endpoint(sock.getsockname(), port)
    _chains[endpoint] = chain
    return endpoint


def unregister(endpoint: Endpoint) -> None:
    """Drop the chain of a socket that is about to be closed."""
    _chains.pop(endpoint, None)
