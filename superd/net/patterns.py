"""The patterns of `allow` and `deny`, as values: parse, format, compare.

Used by every process that reads a configuration, and by workers. Looks up users and groups only
while a configuration is read, and never a host. Raises ValueError with a text for the operator.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from superd.errors import shown
from superd.net.addresses import look_up_id, unmapped

MAX_NAME_CHARACTERS = 253  # in text form: 255 octets on the wire (RFC 1035, 2.3.4)

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"\.?(?:{_LABEL}\.)*{_LABEL}")
_RANGE = re.compile(r"([0-9a-f:.]*[:.][0-9a-f:.]*) *- *([0-9a-f:.]+)", re.IGNORECASE)
_PART_OF_IPV4 = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3}){0,2})(?:\.[x*]?)*", re.IGNORECASE)
_MADE_OF_NUMBERS = re.compile(r"[0-9]+\.(?:.*\.)?(?:[^.]|[^.]*[0-9][^.]*)")
_IPV4_DOTS = 3
_MAX_HINTED_NETWORKS = 8

# words of other programs' rules, which no host has as its name, and what to write for them
_EVERY_CLIENT = 'write "*" for every client'
_WORDS = {
    **dict.fromkeys(("all", "any", "anyone", "anywhere", "everybody", "everyone"), _EVERY_CLIENT),
    **dict.fromkeys(("internet", "world"), _EVERY_CLIENT),
    **dict.fromkeys(("nil", "nobody", "none"), "write [] for no client"),
    **dict.fromkeys(("lan", "local", "localnet", "private"), "write the networks that you mean"),
    **dict.fromkeys(
        ("known", "paranoid", "unknown"),
        "a rule for a name or .domain never matches a client without a confirmed name",
    ),
}

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
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
class Range:
    """Addresses from the first to the last, and the fewest networks that have just these."""

    first: IPAddress
    last: IPAddress
    networks: tuple[IPNetwork, ...] = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


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


Pattern = Wildcard | Network | Range | HostName | User | Group


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
    if _RANGE.fullmatch(text):
        return parse_range(text)
    if part := _PART_OF_IPV4.fullmatch(text):
        raise ValueError(_without_hosts(text, part[1].split(".")))
    if ":" in text or "/" in text or re.fullmatch(r"[0-9.]+", text):
        network = parse_network(text)
        if "/" not in text and network.network_address.is_unspecified:
            meant = f'{shown(f"{network.network_address}/0")}, or "*" for every client'
            raise ValueError(f"no client has the address {text} (did you mean {meant}?)")
        return Network(network)
    name = text.lower().removesuffix(".")
    if (
        len(name.lstrip(".")) > MAX_NAME_CHARACTERS
        or not _NAME.fullmatch(name)
        or _MADE_OF_NUMBERS.fullmatch(name)
    ):
        raise ValueError(
            f"expected an address, a network, a range, a host name, a .domain, user:NAME,"
            f' group:NAME or "*", not {shown(text)}'
        )
    if remedy := _WORDS.get(name.removeprefix(".")):
        raise ValueError(f"{shown(text)} is not the name of a host; {remedy}")
    return HostName(name)


def _without_hosts(text: str, numbers: Sequence[str]) -> str:
    """Return the error for the first numbers of an IPv4 address, a network to some programs."""
    network = ".".join([*numbers, "0", "0", "0"][: _IPV4_DOTS + 1]) + f"/{8 * len(numbers)}"
    return f"{shown(text)} is not an address or a network (did you mean {shown(network)}?)"


def parse_range(text: str) -> Range:
    """Return a range of addresses; of an IPv4 address the end may be the last number. ValueError.

    >>> str(parse_range("192.0.2.1-50"))
    '192.0.2.1-192.0.2.50'
    """
    start, _, end = (part.strip() for part in text.partition("-"))
    if end.isdigit() and start.count(".") == _IPV4_DOTS:
        end = f"{start.rpartition('.')[0]}.{end}"
    try:
        first, last = ipaddress.ip_address(unmapped(start)), ipaddress.ip_address(unmapped(end))
        return Range(first, last, tuple(ipaddress.summarize_address_range(first, last)))
    except (TypeError, ValueError):
        raise ValueError(
            f"{shown(text)} is not a range of addresses: expected the lower, a hyphen and the"
            ' higher, such as "192.0.2.1-192.0.2.50"'
        ) from None


def parse_network(text: str) -> IPNetwork:
    """Return a network; a single address is one, and IPv4-mapped IPv6 becomes IPv4. ValueError."""
    if _RANGE.fullmatch(text):
        networks = parse_range(text).networks
        written = ", ".join(map(shown_network, networks[:_MAX_HINTED_NETWORKS]))
        more = ", ..." if len(networks) > _MAX_HINTED_NETWORKS else ""
        raise ValueError(f"{shown(text)} is a range; write its networks: {written}{more}")
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


def networks_of(pattern: Pattern) -> Iterable[IPNetwork]:
    """Return the networks of an address, a network or a range; nothing for another pattern."""
    if isinstance(pattern, Range):
        return pattern.networks
    return (pattern.network,) if isinstance(pattern, Network) else ()


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
