"""Converts the addresses of `only_from`, `no_access` and `redirect`, as xinetd's source reads them.

xinetd.conf(5) does not describe these rules. Runs in the command line. Never looks at the system.
Raises ValueError for an address with which xinetd does not serve; xinetd ignores other mistakes.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Iterable

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

HOST_NAME_NOTE = (
    "a host name matches only if its reverse and forward look-ups agree; superd does not read"
    " /etc/networks"
)
TARGET_NAME_NOTE = (
    "superd looks the name up again over time, and uses IPv6 addresses too; xinetd keeps the first"
    " IPv4 address"
)


def patterns(text: str) -> tuple[list[str], str]:
    """Return superd's patterns for an address of xinetd, and a note, "" where nothing differs.

    >>> patterns("192.0.2.0")
    (['192.0.2.0/24'], '')
    >>> patterns("192.0.{0,2}")
    (['192.0.0.0/24', '192.0.2.0/24'], '')
    """
    if "{" in text:
        return _factorised(text), ""
    if "," in text:
        raise ValueError("expected one address, found a comma")
    try:
        if "/" in text:
            return _masked(text)
        if ":" in text:
            return [str(ipaddress.IPv6Address(text))], ""
        if re.fullmatch(r"[0-9.]+", text):
            return _with_wildcard_zeros(text)
    except ValueError:
        return [], f"{text} is left out: it is not an address, and xinetd ignores it, too"
    return [text], HOST_NAME_NOTE


def _factorised(text: str) -> list[str]:
    match = re.fullmatch(r"((?:\d+\.){0,3})\{(\d+(?:,\d+)*)\}", text)
    if match is None:
        raise ValueError("expected numbers in braces at the end")
    before = match[1].split(".")[:-1]
    numbers = [[*before, last] for last in match[2].split(",")]
    return [_network([*known, *["0"] * (4 - len(known))], len(known) * 8) for known in numbers]


def _masked(text: str) -> tuple[list[str], str]:
    address, _, mask = text.partition("/")
    bits = re.match(r"\d+", mask)  # xinetd reads it with sscanf(3)
    if bits is None:
        raise ValueError("expected a mask")
    if ":" not in address:
        length = min(int(bits[0]), 32)
        note = f"xinetd reads {text} as /{length}" if bits[0] != mask else ""
        return [str(ipaddress.IPv4Network((address, length), strict=False))], note
    if int(bits[0]) >= 128:
        ipaddress.IPv6Address(address)
        return [], f"{text} is left out: xinetd never matches a /128; write it without the mask"
    return [str(ipaddress.IPv6Network((address, int(bits[0])), strict=False))], ""


def _with_wildcard_zeros(text: str) -> tuple[list[str], str]:
    try:
        numbers = [str(number) for number in socket.inet_aton(text)]
    except OSError:
        raise ValueError("expected an address") from None
    known = 4
    while known and numbers[known - 1] == "0":
        known -= 1
    pattern = _network(numbers, known * 8)
    is_short = text.count(".") < 3
    note = f"xinetd reads {text} as {'.'.join(numbers)}" if is_short else ""
    return [pattern], note


def _network(numbers: Iterable[str], length: int) -> str:
    network = ipaddress.IPv4Network((".".join(numbers), length))
    return str(network.network_address) if length == 32 else str(network)


def overridden(allow: list[str], deny: list[str]) -> list[str]:
    """Return the patterns of only_from that xinetd refuses: no_access has a wider network."""
    networks = _networks(deny)
    return [
        pattern
        for pattern in allow
        for network in _networks([pattern])
        if any(_is_within(network, other) for other in networks)
    ]


def _is_within(network: IPNetwork, other: IPNetwork) -> bool:
    if network.version != other.version or network == other:
        return False
    return network.prefixlen > other.prefixlen and network.network_address in other


def _networks(texts: list[str]) -> list[IPNetwork]:
    found: list[IPNetwork] = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError:
            continue  # a host name
    return found


def is_name(pattern: str) -> bool:
    """Tell whether a pattern matches host names."""
    return not set(pattern) <= set("0123456789abcdefABCDEF:./") or pattern.startswith(".")


def target(host: str, port: str) -> tuple[str, str]:
    """Return superd's target for the two words of `redirect`, and a note, "" where nothing differs.

    >>> target("127.1", "http")
    ('127.0.0.1:http', '')
    """
    if ":" in host:
        return f"[{host}]:{port}", ""
    if re.fullmatch(r"[0-9.]+", host):
        with contextlib.suppress(OSError):
            host = socket.inet_ntoa(socket.inet_aton(host))
        return f"{host}:{port}", ""
    return f"{host}:{port}", TARGET_NAME_NOTE
