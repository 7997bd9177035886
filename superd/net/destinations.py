"""Destinations to connect to: like an address, but the host may be a name.

Used by every process. Looks up no name: the caller does so when it connects. Raises ValueError with
a text for the operator.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace

from superd.errors import shown
from superd.net.addresses import (
    ANY_IPV4,
    ANY_IPV6,
    BROADCAST,
    ENDPOINT,
    Address,
    Transport,
    is_for_many,
    parse_ipv6,
    parse_port,
    parse_ports,
    parse_unix,
)
from superd.net.names import normalized_name

TRANSPORTS = (Transport.TCP, Transport.UDP, Transport.UNIX, Transport.UNIXGRAM)


@dataclass(frozen=True)
class Destination:
    """A host and a port, or the path of a unix socket.

    A destination without a transport takes connections by tcp and datagrams by udp. One with a
    `last_port` is a range of ports.
    """

    transport: Transport | None
    host: str = ""
    port: int = 0
    path: str = ""
    last_port: int = 0

    def __str__(self) -> str:
        scheme = f"{self.transport.value}://" if self.transport else ""
        if self.path:
            return f"{scheme}{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}{host}:{self.port}{f'-{self.last_port}' if self.last_port else ''}"

    @property
    def ports(self) -> range:
        return range(self.port, (self.last_port or self.port) + 1)

    def at(self, number: int) -> Destination:
        """Return the destination with that port of its range, counted from 0."""
        return replace(self, port=self.ports[number], last_port=0) if self.last_port else self

    @property
    def is_name(self) -> bool:
        """Whether the host is a name that has to be looked up."""
        if not self.host:
            return False
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return True
        return False

    def serves(self, *, datagrams: bool) -> bool:
        """Return whether it takes datagrams, or connections if `datagrams` is False."""
        return self.transport is None or self.transport.is_datagram == datagrams

    def address(self, host: str, *, datagrams: bool) -> Address:
        """Return the address for a numeric host."""
        transport = self.transport or (Transport.UDP if datagrams else Transport.TCP)
        return Address(transport, host, self.port, self.path)


def parse_destination(
    text: str, transports: tuple[Transport, ...] = TRANSPORTS, *, may_be_range: bool = False
) -> Destination:
    """Return the destination of `tcp://HOST:PORT`, `udp://HOST:PORT`, `HOST:PORT`, `unix://PATH`
    or `unixgram://PATH`; PORT may be FIRST-LAST for a range. ValueError.
    """
    prefix, separator, rest = text.partition("://")
    transport = None
    if separator:
        transport = next((t for t in transports if t.value == prefix), None)
        if transport is None:
            known = ", ".join(f"{t.value}://" for t in transports)
            raise ValueError(f"expected an address that starts with one of {known}")
    else:
        rest = text
    if transport is not None and transport.is_unix:
        if "?" in rest:
            raise ValueError("expected only the path of the socket, with nothing after a ?")
        return Destination(transport, path=parse_unix(transport, rest).path)
    match = ENDPOINT.fullmatch(rest)
    if match is None or ":" in match["ports"]:
        raise ValueError(
            "expected a host and a port, such as tcp://127.0.0.1:80, tcp://[::1]:80 or HOST:80"
        )
    host = parse_ipv6(match["bracketed"]) if match["host"] is None else _host(match["host"])
    by = transport or Transport.TCP  # whose names of ports count
    if may_be_range:
        ports = parse_ports(match["ports"], by)
    else:
        port = parse_port(match["ports"], by)
        ports = range(port, port + 1)
    if not ports[0]:
        raise ValueError("port 0 cannot be connected to")
    if host in (ANY_IPV4, ANY_IPV6):
        raise ValueError(
            f"expected one address to connect to, not {host}, which means every address"
        )
    if host == BROADCAST or (transport is not Transport.UDP and is_for_many(host)):
        raise ValueError(f"cannot connect to {host}: it is the address of many hosts")
    return Destination(transport, host, ports[0], last_port=ports[-1] if len(ports) > 1 else 0)


def _host(text: str) -> str:
    """Return an IPv4 address or a name, judged by its form alone. ValueError."""
    if not text or text == "*":
        raise ValueError("the host to connect to is missing")
    if re.fullmatch(r"[0-9.]+", text):
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            raise ValueError(f"{text} is not an IPv4 address") from None
    name = normalized_name(text)
    if not name:
        raise ValueError(f"{shown(text)} is not a host")
    return name
