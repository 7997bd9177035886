"""What xinetd takes an address of `only_from`, `no_access` and `redirect` for, which its page does
not tell.

Runs in the command line. Never looks at the system. Raises ValueError for what xinetd does not
serve with; other mistakes are words that it leaves out.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Iterable

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

NAMES = "a name counts only where a look-up there and back agrees, and /etc/networks is not asked"
LOOKED_UP_AGAIN = (
    "the name is looked up again as time goes by, and IPv6 counts; xinetd keeps the first IPv4"
    " address that it had"
)


def patterns(text: str) -> tuple[list[str], str]:
    """Return what superd calls an address of xinetd, and what is different about it.

    >>> patterns("192.0.2.0")
    (['192.0.2.0/24'], '')
    >>> patterns("192.0.{0,2}")
    (['192.0.0.0/24', '192.0.2.0/24'], '')
    """
    if "{" in text:
        return _factorised(text), ""
    if "," in text:
        raise ValueError("a comma")
    try:
        if "/" in text:
            return _masked(text)
        if ":" in text:
            return [str(ipaddress.IPv6Address(text))], ""
        if re.fullmatch(r"[0-9.]+", text):
            return _zeros_are_anything(text)
    except ValueError:
        return [], f"{text} is left out: it is no address to xinetd either"
    return [text], NAMES


def _factorised(text: str) -> list[str]:
    match = re.fullmatch(r"((?:\d+\.){0,3})\{(\d+(?:,\d+)*)\}", text)
    if match is None:
        raise ValueError("no factorised address")
    before = match[1].split(".")[:-1]
    numbers = [[*before, last] for last in match[2].split(",")]
    return [_network([*some, *["0"] * (4 - len(some))], len(some) * 8) for some in numbers]


def _masked(text: str) -> tuple[list[str], str]:
    address, _, mask = text.partition("/")
    bits = re.match(r"\d+", mask)  # as sscanf(3) reads it
    if bits is None:
        raise ValueError("no mask")
    if ":" not in address:
        length = min(int(bits[0]), 32)
        remark = f"xinetd takes {text} for /{length}" if bits[0] != mask else ""
        return [str(ipaddress.IPv4Network((address, length), strict=False))], remark
    if int(bits[0]) >= 128:
        ipaddress.IPv6Address(address)
        return [], f"{text} is left out: xinetd never matches a /128; write it without the mask"
    return [str(ipaddress.IPv6Network((address, int(bits[0])), strict=False))], ""


def _zeros_are_anything(text: str) -> tuple[list[str], str]:
    try:
        numbers = [str(number) for number in socket.inet_aton(text)]
    except OSError:
        raise ValueError("no address") from None
    known = 4
    while known and numbers[known - 1] == "0":
        known -= 1
    pattern = _network(numbers, known * 8)
    is_short = text.count(".") < 3
    remark = f"xinetd takes {text} for {'.'.join(numbers)}" if is_short else ""
    return [pattern], remark


def _network(numbers: Iterable[str], length: int) -> str:
    network = ipaddress.IPv4Network((".".join(numbers), length))
    return str(network.network_address) if length == 32 else str(network)


def overruled(allow: list[str], deny: list[str]) -> list[str]:
    """Return what xinetd refuses although only_from has it: no_access has a wider network."""
    networks = _networks(deny)
    return [
        pattern
        for pattern in allow
        for one in _networks([pattern])
        if any(_is_within(one, other) for other in networks)
    ]


def _is_within(one: IPNetwork, other: IPNetwork) -> bool:
    if one.version != other.version or one == other:
        return False
    return one.prefixlen > other.prefixlen and one.network_address in other


def _networks(texts: list[str]) -> list[IPNetwork]:
    found: list[IPNetwork] = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError:
            continue  # a name
    return found


def is_name(pattern: str) -> bool:
    """Tell whether a pattern is of a host's name."""
    return not set(pattern) <= set("0123456789abcdefABCDEF:./") or pattern.startswith(".")


def target(host: str, port: str) -> tuple[str, str]:
    """Return what superd calls the two words of `redirect`, and what is different about it.

    >>> target("127.1", "http")
    ('127.0.0.1:http', '')
    """
    if ":" in host:
        return f"[{host}]:{port}", ""
    if re.fullmatch(r"[0-9.]+", host):
        with contextlib.suppress(OSError):
            host = socket.inet_ntoa(socket.inet_aton(host))
        return f"{host}:{port}", ""
    return f"{host}:{port}", LOOKED_UP_AGAIN
