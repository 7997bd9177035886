"""Forwards that lead back to themselves: a chain of own connections would soon use up everything.

Each socket that a forward in this process connects to a port of superd's own, or to a unix socket,
is remembered with the services it comes through. Whoever comes from there has come that way, so a
service finds itself in the chain.
"""

from __future__ import annotations

import socket
from typing import Any

from superd.plugin import Address, Transport

Endpoint = tuple[str, int]  # a host and a port, or a path and 0
Chain = tuple[object, ...]

LOOP = "it comes from this very service: the target leads back here"

_chains: dict[Endpoint, Chain] = {}


def chain_of(sock: socket.SocketType) -> Chain:
    """Return the services that a client has come through."""
    if not _chains:
        return ()
    try:
        return chain_at(_endpoint(sock.getpeername()))
    except OSError:  # it has gone already
        return ()


def chain_at(endpoint: Endpoint) -> Chain:
    """Return what comes from an endpoint has come through."""
    return _chains.get(endpoint, ())


def _endpoint(name: Any) -> Endpoint:
    if isinstance(name, tuple):
        return name[0], name[1]
    return Address.of_socket(Transport.UNIX, name).path, 0


def remember(sock: socket.SocketType, chain: Chain) -> Endpoint:
    """Take note that what comes from our end of a socket has come through `chain`."""
    endpoint = _endpoint(sock.getsockname())
    _chains[endpoint] = chain
    return endpoint


def forget(endpoint: Endpoint) -> None:
    """Take note that a socket is about to be closed."""
    _chains.pop(endpoint, None)
