"""The patterns of `allow` and `deny`, as values: parse, format, compare.

Used by every process that reads a configuration, and by workers. Looks up users and groups only
while a configuration is read, and never a host. Raises ValueError with a text for the operator.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from superd.errors import shown
from superd.net.addresses import look_up_id

MAX_NAME_CHARACTERS = 253  # in text form: 255 octets on the wire (RFC 1035, 2.3.4)

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"\.?(?:{_LABEL}\.)*{_LABEL}")

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Wildcard:
    """`*`: every client, by every transport."""

    def __str__(self) -> str:
        return "*"


@dataclass(frozen=True)
class Network:
    """An address or a network; IPv4-mapped IPv6 is held as IPv4."""

    network: IPNetwork

    def __str__(self) -> str:
        return shown_network(self.network)


@dataclass(frozen=True)
class HostName:
    """A host by its confirmed name; with a leading dot, a domain and every name below it."""

    name: str

    def matches(self, name: str) -> bool:
        if self.name.startswith("."):
            return name == self.name[1:] or name.endswith(self.name)
        return name == self.name

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class User:
    """A client of a unix socket, by its user."""

    uid: int

    def __str__(self) -> str:
        return f"user:{self.uid}"


@dataclass(frozen=True)
class Group:
    """A client of a unix socket, by one of its groups."""

    gid: int

    def __str__(self) -> str:
        return f"group:{self.gid}"


Pattern = Wildcard | Network | HostName | User | Group


def parse_pattern(text: str) -> Pattern:
    """Return the pattern that a text means. ValueError.

    >>> str(parse_pattern("::ffff:192.0.2.0/120"))
    '192.0.2.0/24'
    """
    if text == "*":
        return Wildcard()
    if text.startswith("user:"):
        return User(look_up_id(text[5:], "user"))
    if text.startswith("group:"):
        return Group(look_up_id(text[6:], "group"))
    if ":" in text or "/" in text or re.fullmatch(r"[0-9.]+", text):
        return Network(parse_network(text))
    name = text.lower().removesuffix(".")
    if len(name.lstrip(".")) > MAX_NAME_CHARACTERS or not _NAME.fullmatch(name):
        raise ValueError(
            f"expected an address, a network, a host name, a .domain, user:NAME, group:NAME or"
            f' "*", not {shown(text)}'
        )
    return HostName(name)


def parse_network(text: str) -> IPNetwork:
    """Return a network; a single address is one, and IPv4-mapped IPv6 becomes IPv4. ValueError."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        try:
            meant = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"{shown(text)} is not an address or a network") from None
        if "host bits" in str(error):
            text = f"{shown(text)} has bits beyond its mask (did you mean {shown(str(meant))}?)"
        raise ValueError(text) from None
    return unmapped_network(network)


def shown_network(network: IPNetwork) -> str:
    """Return a network as text; a network of one address as that address."""
    is_host = network.prefixlen == network.max_prefixlen
    return str(network.network_address if is_host else network)


def unmapped_network(network: IPNetwork) -> IPNetwork:
    """Return a network of IPv4-mapped IPv6 (RFC 4291, 2.5.5.2) as IPv4; any other unchanged."""
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < 96:
        return network
    return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
