"""Forwards that lead back to themselves: a chain of own connections would soon use up everything.

Each socket that a forward in this process connects to a port of superd's own, or to a unix socket,
is remembered with the services it comes through. Whoever comes from there has come that way, so a
service finds itself in the chain.
"""

from __future__ import annotations

import socket
from typing import Any

from superd.plugin import Address, Transport

# A host, its port and the port that it is connected to: the kernel gives its own ports away to
# several connections that lead elsewhere. Or a path, and 0 twice.
Endpoint = tuple[str, int, int]
Chain = tuple[object, ...]

LOOP = "it comes from this very service: the target leads back here"

_chains: dict[Endpoint, Chain] = {}


def chain_of(sock: socket.SocketType) -> Chain:
    """Return the services that a client has come through."""
    if not _chains:
        return ()
    try:
        return chain_at(_endpoint(sock.getpeername(), _port(sock.getsockname())))
    except OSError:  # it has gone already
        return ()


def chain_at(endpoint: Endpoint) -> Chain:
    """Return what comes from an endpoint has come through."""
    return _chains.get(endpoint, ())


def _port(name: Any) -> int:
    return name[1] if isinstance(name, tuple) else 0


def _endpoint(name: Any, port: int) -> Endpoint:
    if isinstance(name, tuple):
        return name[0], name[1], port
    return Address.from_sockaddr(Transport.UNIX, name).path, 0, port


def remember(sock: socket.SocketType, port: int, chain: Chain) -> Endpoint:
    """Take note that what comes to `port` from our end of a socket has come through `chain`."""
    endpoint = _endpoint(sock.getsockname(), port)
    _chains[endpoint] = chain
    return endpoint


def forget(endpoint: Endpoint) -> None:
    """Take note that a socket is about to be closed."""
    _chains.pop(endpoint, None)
