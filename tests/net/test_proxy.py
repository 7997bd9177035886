"""The PROXY protocol's headers, read by a parser written from the specification."""

from __future__ import annotations

import ipaddress
import os
import re
import struct
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superd.net.addresses import Address, Transport
from superd.net.proxy import proxy_header_v1, proxy_header_v2

TCP, UDP, UNIX, UNIXGRAM = Transport.TCP, Transport.UDP, Transport.UNIX, Transport.UNIXGRAM
SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")


class Header(NamedTuple):
    """What a target behind the forwarder reads in a header."""

    family: str
    kind: str
    source: tuple[str, int]
    destination: tuple[str, int]


def read_v1(data: bytes) -> Header | None:
    """Parse a header of section 2.1; None for UNKNOWN."""
    assert data.endswith(b"\r\n")
    assert len(data) <= 107
    text = data[:-2].decode("ascii")
    if text == "PROXY UNKNOWN":
        return None
    match = re.fullmatch(r"PROXY (TCP4|TCP6) (\S+) (\S+) (0|[1-9]\d*) (0|[1-9]\d*)", text)
    assert match, text
    make = ipaddress.IPv4Address if match[1] == "TCP4" else ipaddress.IPv6Address
    hosts = [str(make(match[number])) for number in (2, 3)]
    ports = [int(match[number]) for number in (4, 5)]
    assert max(ports) <= 65535
    return Header(match[1], "STREAM", (hosts[0], ports[0]), (hosts[1], ports[1]))


def read_v2(data: bytes) -> Header:
    """Parse a header of section 2.2; superd sends no TLV."""
    signature, command, kind, length = struct.unpack_from("!12sBBH", data)
    assert signature == SIGNATURE
    assert command == 0x21
    body = data[16:]
    assert len(body) == length
    protocol = {1: "STREAM", 2: "DGRAM"}[kind & 15]
    if kind >> 4 == 3:
        source, destination = (p.rstrip(b"\0") for p in struct.unpack("!108s108s", body))
        return Header("UNIX", protocol, (os.fsdecode(source), 0), (os.fsdecode(destination), 0))
    family, size = {1: ("INET", 4), 2: ("INET6", 16)}[kind >> 4]
    packed = body[:size], body[size : 2 * size]
    ports = struct.unpack("!HH", body[2 * size :])
    hosts = [str(ipaddress.ip_address(host)) for host in packed]
    return Header(family, protocol, (hosts[0], ports[0]), (hosts[1], ports[1]))


def test_headers_have_the_bytes_of_the_specification() -> None:
    peer, local = Address(TCP, "192.168.0.1", 56324), Address(TCP, "192.168.0.11", 443)
    assert proxy_header_v1(peer, local) == b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
    assert proxy_header_v2(peer, local) == SIGNATURE + bytes.fromhex(
        "21 11 000c c0a80001 c0a8000b dc04 01bb"
    )
    peer, local = Address(UDP, "2001:db8::1", 1), Address(UDP, "2001:db8::2", 65535)
    assert proxy_header_v2(peer, local) == SIGNATURE + bytes.fromhex(
        "21 22 0024 20010db8000000000000000000000001 20010db8000000000000000000000002 0001 ffff"
    )


HOSTS = st.ip_addresses()
PORTS = st.integers(0, 65535)


@given(HOSTS, HOSTS, PORTS, PORTS)
def test_both_ends_are_in_the_header_whatever_their_families(
    source: ipaddress.IPv4Address | ipaddress.IPv6Address,
    destination: ipaddress.IPv4Address | ipaddress.IPv6Address,
    from_port: int,
    to_port: int,
) -> None:
    peer, local = Address(TCP, str(source), from_port), Address(TCP, str(destination), to_port)
    if source.version != destination.version:
        source, destination = map(as_ipv6, (source, destination))
    ends = (str(source), from_port), (str(destination), to_port)
    version = source.version
    assert read_v1(proxy_header_v1(peer, local)) == (f"TCP{version}", "STREAM", *ends)
    family = {4: "INET", 6: "INET6"}[version]
    assert read_v2(proxy_header_v2(peer, local)) == (family, "STREAM", *ends)


def as_ipv6(host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv6Address:
    number = int(host) if host.version == 6 else 0xFFFF << 32 | int(host)
    return ipaddress.IPv6Address(number)


def test_the_longest_text_header_fits() -> None:
    longest = "ffff:" * 7 + "ffff"
    header = proxy_header_v1(Address(TCP, longest, 65535), Address(TCP, longest, 65535))
    assert len(header) == 104
    assert read_v1(header) == ("TCP6", "STREAM", (longest, 65535), (longest, 65535))


def test_the_scope_of_a_link_local_host_is_not_sent() -> None:
    peer, local = Address(TCP, "fe80::1%lo", 5), Address(TCP, "fe80::2%lo", 6)
    ends = ("fe80::1", 5), ("fe80::2", 6)
    assert read_v1(proxy_header_v1(peer, local)) == ("TCP6", "STREAM", *ends)
    assert read_v2(proxy_header_v2(peer, local)) == ("INET6", "STREAM", *ends)


def test_the_text_header_is_unknown_for_all_but_tcp() -> None:
    unix, udp = Address(UNIX, path="/run/a"), Address(UDP, "127.0.0.1", 5)
    assert read_v1(proxy_header_v1(unix, unix)) is None
    assert read_v1(proxy_header_v1(udp, udp)) is None


@pytest.mark.parametrize(("transport", "kind"), [(UNIX, "STREAM"), (UNIXGRAM, "DGRAM")])
@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/run/a.sock", "/run/a.sock"),
        ("@abstract", "\0abstract"),
        ("", ""),
        ("/" + "é" * 53, "/" + "é" * 53),
    ],
)
def test_the_paths_of_unix_sockets_are_in_the_header(
    transport: Transport, kind: str, path: str, sent: str
) -> None:
    header = proxy_header_v2(Address(transport, path=path), Address(transport, path="/b"))
    assert len(header) == 232
    assert read_v2(header) == ("UNIX", kind, (sent, 0), ("/b", 0))


@pytest.mark.parametrize(("host", "family"), [("192.0.2.1", "INET"), ("2001:db8::1", "INET6")])
def test_the_header_of_a_datagram_says_so(host: str, family: str) -> None:
    header = proxy_header_v2(Address(UDP, host, 5), Address(UDP, host, 6))
    assert read_v2(header) == (family, "DGRAM", (host, 5), (host, 6))
