"""Destinations as values: parsing, formatting, and refusing with a message."""

from __future__ import annotations

import ipaddress
import re
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from superd.net.addresses import BROADCAST, MAX_PORT, MAX_UNIX_PATH_BYTES, Address, Transport
from superd.net.destinations import TRANSPORTS, Destination, parse_destination

INTERNET = (None, Transport.TCP, Transport.UDP)
UNIX = (Transport.UNIX, Transport.UNIXGRAM)
PORTS = st.integers(1, MAX_PORT)
PATHS = st.text(string.ascii_letters + string.digits + "._-+ /:@é", min_size=1, max_size=40)
LABELS = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=2, max_size=4).map(".".join)


@given(st.sampled_from(INTERNET), st.ip_addresses(), PORTS)
def test_a_numeric_host_parses_back_from_its_text(
    transport: Transport | None, host: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    assume(not (mapped or host).is_unspecified and not (mapped or host).is_link_local)
    assume(not (mapped or host).is_multicast and str(mapped or host) != BROADCAST)
    one = Destination(transport, str(mapped or host), port)
    assert parse_destination(str(one)) == one
    assert not one.is_name


@given(st.sampled_from(INTERNET), NAMES, PORTS)
def test_a_name_parses_back_from_its_text_without_a_lookup(
    transport: Transport | None, name: str, port: int
) -> None:
    name += ".x"  # a name cannot end in a number
    one = Destination(transport, name, port)
    assert parse_destination(str(one)) == one
    assert one.is_name


@given(st.sampled_from(UNIX), st.sampled_from("/@"), PATHS)
def test_a_unix_socket_parses_back_from_its_text(
    transport: Transport, start: str, path: str
) -> None:
    one = Destination(transport, path=start + path)
    assert parse_destination(str(one)) == one
    assert not one.is_name
    assert one.address("", datagrams=transport.is_datagram) == Address(transport, path=start + path)


NEARLY = r"((tcp|udp)://)?(\[[0-9a-f:.%]*\]|[0-9a-zé.*_-]*):[0-9a-z-]*|unix(gram)?://[a-z0-9?=@/]*"


@given(st.one_of(st.text(), st.from_regex(NEARLY, fullmatch=True)))
def test_any_text_is_a_destination_or_refused_with_a_message(text: str) -> None:
    try:
        one = parse_destination(text)
    except ValueError as error:
        message = str(error)
        assert " " in message
        assert "Error" not in message
        assert "codec" not in message
    else:
        assert parse_destination(str(one)) == one


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("tcp://127.0.0.1:0080", "tcp://127.0.0.1:80"),
        ("udp://[2001:DB8:0:0::1]:53", "udp://[2001:db8::1]:53"),
        ("[::1]:53", "[::1]:53"),
        ("tcp://[::ffff:192.0.2.1]:80", "tcp://192.0.2.1:80"),
        ("tcp://[fe80::1%lo]:80", "tcp://[fe80::1%lo]:80"),
        ("tcp://Www.Example.org:80", "tcp://www.example.org:80"),
        ("www.example.org.:80", "www.example.org.:80"),
        ("tcp://_sip.example.org:80", "tcp://_sip.example.org:80"),
        ("tcp://bücher.example:80", "tcp://xn--bcher-kva.example:80"),
        ("tcp://例え.テスト:80", "tcp://xn--r8jz45g.xn--zckzah:80"),
        ("unix:///run/a b.sock", "unix:///run/a b.sock"),
        ("unixgram://@log", "unixgram://@log"),
    ],
)
def test_meaning_of_a_destination(text: str, found: str) -> None:
    assert str(parse_destination(text)) == found


@pytest.mark.file("/etc/services")
def test_a_port_may_be_a_name_of_etc_services() -> None:
    assert parse_destination("tcp://127.0.0.1:finger").port == 79
    assert parse_destination("udp://127.0.0.1:tftp").port == 69
    assert parse_destination("127.0.0.1:domain").port == 53


def test_a_destination_without_a_transport_takes_tcp_and_udp() -> None:
    one = parse_destination("127.0.0.1:53")
    assert str(one.address("127.0.0.1", datagrams=False)) == "tcp://127.0.0.1:53"
    assert str(one.address("127.0.0.1", datagrams=True)) == "udp://127.0.0.1:53"
    assert one.serves(datagrams=False)
    assert one.serves(datagrams=True)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_transport_takes_connections_or_datagrams(transport: Transport) -> None:
    one = Destination(transport, "127.0.0.1", 53)
    assert one.serves(datagrams=True) == transport.is_datagram
    assert one.serves(datagrams=False) == (not transport.is_datagram)


HOST = "expected a host and a port, such as tcp://127.0.0.1:80"


STARTS = "an address that starts with one of tcp://, udp://, unix://, unixgram://"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", HOST),
        ("127.0.0.1", HOST),
        ("tcp://127.0.0.1", HOST),
        ("tcp://127.0.0.1:", HOST),
        ("tcp://::1:80", HOST),
        ("tcp://127.0.0.1/80", HOST),
        ("tcp://127.0.0.1:0", "port 0 cannot be connected to"),
        ("tcp://127.0.0.1:65536", "there is no port 65536 (the last is 65535)"),
        ("tcp://127.0.0.1:-1", '"-1" is neither a port nor a name of /etc/services'),
        ("tcp://127.0.0.1:80-81", '"80-81" is neither a port nor a name of /etc/services'),
        ("tcp://127.0.0.1:80/x", '"80/x" is neither a port nor a name of /etc/services'),
        ("tcp://*:80", "the host to connect to is missing"),
        ("tcp://:80", "the host to connect to is missing"),
        ("tcp://1.2.3:80", "1.2.3 is not an IPv4 address"),
        ("tcp://127.0x1:80", '"127.0x1" is not a host'),
        ("tcp://256.1.1.1:80", "256.1.1.1 is not an IPv4 address"),
        ("tcp://[fe80::1]:80", "add its network interface, such as [fe80::1%eth0]"),
        ("udp://[ff02::1]:80", "add its network interface, such as [ff02::1%eth0]"),
        ("tcp://224.0.0.1:80", "cannot connect to 224.0.0.1: it is the address of many hosts"),
        ("224.0.0.1:80", "cannot connect to 224.0.0.1: it is the address of many hosts"),
        ("udp://255.255.255.255:80", "cannot connect to 255.255.255.255: it is the address"),
        ("tcp://[::x]:80", "[::x] is not an IPv6 address"),
        ("tcp://[127.0.0.1]:80", "[127.0.0.1] is not an IPv6 address"),
        ("tcp://a b:80", '"a b" is not a host'),
        ("tcp://-a:80", '"-a" is not a host'),
        ("tcp://a..b:80", '"a..b" is not a host'),
        (f"tcp://{'a' * 64}:80", "is not a host"),
        (f"tcp://{'a.' * 127}a:80", "is not a host"),
        ("http://127.0.0.1:80", STARTS),
        ("TCP://127.0.0.1:80", STARTS),
        ("unixpacket:///run/a", STARTS),
        ("unix://run/a", "expected an absolute path (unix:///run/name.sock)"),
        ("unix:///", "expected an absolute path"),
        ("unixgram://@", "expected an absolute path (unixgram:///run/name.sock)"),
        ("unix:///run/a\0b", "cannot contain NUL"),
        (f"unix:///{'a' * MAX_UNIX_PATH_BYTES}", "has at most 107 bytes"),
        ("unix:///run/a?mode=0660", "expected only the path of the socket, with nothing after a ?"),
    ],
)  # fmt: skip
def test_an_invalid_destination_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_destination(text)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_a_wildcard_is_not_a_destination(host: str) -> None:
    with pytest.raises(
        ValueError, match=r"expected one address to connect to, not .*, which means every address"
    ):
        parse_destination(f"tcp://{host}:80")
