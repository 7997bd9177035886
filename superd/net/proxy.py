"""The PROXY protocol: a header that gives a target the address of the forwarded client.

Used by workers. Source: HAProxy's doc/proxy-protocol.txt. Only writes headers. Never raises.
"""

from __future__ import annotations

import ipaddress
import os

from superd.net.addresses import Address

V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_PROXY, _V2_LOCAL = 0x21, 0x20  # version 2; for a client, and for superd itself
_INET, _INET6, _UNIX = 0x10, 0x20, 0x30
_STREAM, _DGRAM = 0x01, 0x02
_UNIX_PATH = 108  # bytes, padded with NUL


# sent before a probe, which has no client
OWN_HEADER_V1 = b"PROXY UNKNOWN\r\n"
OWN_HEADER_V2 = V2_SIGNATURE + bytes((_V2_LOCAL, 0, 0, 0))


def proxy_header_v1(peer: Address, local: Address) -> bytes:
    """Return the text header, of at most 107 bytes; `UNKNOWN` for any transport but tcp."""
    hosts = _hosts(peer, local)
    if hosts is None or peer.transport.is_datagram:
        return OWN_HEADER_V1
    source, destination = hosts
    line = f"PROXY TCP{source.version} {source} {destination} {peer.port} {local.port}\r\n"
    return line.encode("ascii")


def proxy_header_v2(peer: Address, local: Address) -> bytes:
    """Return the binary header: 28 bytes for IPv4, 52 for IPv6, 232 for unix sockets."""
    kind = _DGRAM if peer.transport.is_datagram else _STREAM
    if (hosts := _hosts(peer, local)) is not None:
        source, destination = hosts
        kind |= _INET if source.version == 4 else _INET6
        ports = peer.port.to_bytes(2, "big") + local.port.to_bytes(2, "big")
        body = source.packed + destination.packed + ports
    else:
        kind |= _UNIX
        body = _path(peer) + _path(local)
    return V2_SIGNATURE + bytes((_V2_PROXY, kind)) + len(body).to_bytes(2, "big") + body


_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


def _hosts(peer: Address, local: Address) -> tuple[_IP, _IP] | None:
    """Return the hosts of both ends in one address family; None for unix sockets."""
    if not (peer.host and local.host):
        return None
    source, destination = (ipaddress.ip_address(a.host.partition("%")[0]) for a in (peer, local))
    if source.version != destination.version:
        source, destination = _as_ipv6(source), _as_ipv6(destination)
    return source, destination


def _as_ipv6(host: _IP) -> ipaddress.IPv6Address:
    mapped = f"::ffff:{host}" if host.version == 4 else str(host)
    return ipaddress.IPv6Address(mapped)


def _path(address: Address) -> bytes:
    path = os.fsencode(address.path)
    path = b"\0" + path[1:] if path.startswith(b"@") else path
    return path[:_UNIX_PATH].ljust(_UNIX_PATH, b"\0")
