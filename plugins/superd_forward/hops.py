"""Forwards that lead back to themselves: a chain of own connections would soon use up everything.

Each socket that a forward in this process connects to a port of superd's own is remembered, with
the services it comes through. Whoever comes from there has come that way, so a service finds itself
in the chain.
"""

from __future__ import annotations

import socket

Endpoint = tuple[str, int]
Chain = tuple[object, ...]

LOOP = "it comes from this very service: the target leads back here"

_chains: dict[Endpoint, Chain] = {}


def chain_of(sock: socket.SocketType) -> Chain:
    """Return the services that a client has come through."""
    if not _chains or sock.family == socket.AF_UNIX:
        return ()
    try:
        return chain_at(sock.getpeername()[:2])
    except OSError:  # it has gone already
        return ()


def chain_at(endpoint: Endpoint) -> Chain:
    """Return what comes from an endpoint has come through."""
    return _chains.get(endpoint, ())


def remember(sock: socket.SocketType, chain: Chain) -> Endpoint:
    """Take note that what comes from our end of a socket has come through `chain`."""
    endpoint: Endpoint = sock.getsockname()[:2]
    _chains[endpoint] = chain
    return endpoint


def forget(endpoint: Endpoint) -> None:
    """Take note that a socket is about to be closed."""
    _chains.pop(endpoint, None)
