"""Addresses as values: parsing, formatting, comparing and refusing."""

from __future__ import annotations

import ipaddress
import socket
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from superd.net.addresses import (
    BROADCAST,
    MAX_PORT,
    MAX_UNIX_PATH_BYTES,
    Address,
    Transport,
    parse_addresses,
    unmapped,
)

INTERNET = (Transport.TCP, Transport.UDP)
UNIX = (Transport.UNIX, Transport.UNIXGRAM, Transport.UNIXPACKET)

PORTS = st.integers(0, MAX_PORT)
PATHS = st.text(string.ascii_letters + string.digits + "._-+ /:@é", min_size=1, max_size=40)


def texts(text: str) -> list[str]:
    return [str(address) for address in parse_addresses(text)]


def refusal(text: str) -> str:
    try:
        parse_addresses(text)
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{text} is an address")


@given(st.sampled_from(INTERNET), st.ip_addresses(), PORTS)
def test_an_internet_address_parses_back_from_its_text(
    transport: Transport, host: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    assume(not (mapped or host).is_multicast and not (mapped or host).is_link_local)
    assume(str(mapped or host) != BROADCAST)
    address = Address(transport, str(mapped or host), port)
    assert parse_addresses(str(address)) == (address,)
    assert address.family == (socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    assert address.sockaddr[:2] == (address.host, port)


@given(st.sampled_from(UNIX), st.sampled_from("/@"), PATHS)
def test_a_unix_address_parses_back_from_its_text(
    transport: Transport, start: str, path: str
) -> None:
    address = Address(transport, path=start + path)
    assert parse_addresses(str(address)) == (address,)
    assert address.is_file == (start == "/")
    assert address.family == socket.AF_UNIX


# almost addresses; no host is a name, as that would be looked up
NEARLY = r"(tcp|udp)://(\[[0-9a-f:.%]*\]|[0-9.*]*):[0-9-]*|unix(gram|packet)?://[a-z0-9?=@/&%-]*"


@given(st.one_of(st.text(), st.from_regex(NEARLY, fullmatch=True)))
def test_any_text_is_an_address_or_refused_with_a_message(text: str) -> None:
    try:
        message = " ".join(texts(text))
    except ValueError as error:
        message = str(error)
    assert "://" in message or " " in message
    assert "Error" not in message


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("tcp://127.0.0.1:7", ["tcp://127.0.0.1:7"]),
        ("udp://[::1]:007", ["udp://[::1]:7"]),
        ("tcp://*:7", ["tcp://*:7"]),
        ("tcp://[::]:0", ["tcp://[::]:0"]),
        ("tcp://[2001:DB8:0:0::1]:80", ["tcp://[2001:db8::1]:80"]),
        ("tcp://[::ffff:192.0.2.1]:80", ["tcp://192.0.2.1:80"]),
        ("tcp://127.0.0.1:7-9", [f"tcp://127.0.0.1:{n}" for n in (7, 8, 9)]),
        ("udp://*:7-7", ["udp://*:7"]),
        ("unix:///run/a.sock", ["unix:///run/a.sock"]),
        ("unix:///run/a.sock?mode=0660&user=0&group=root", ["unix:///run/a.sock"]),
        ("unixgram://@a b", ["unixgram://@a b"]),
        ("unixpacket:///a", ["unixpacket:///a"]),
    ],
)
def test_meaning_of_a_listen_value(text: str, found: list[str]) -> None:
    assert texts(text) == found


@pytest.mark.file("/etc/services")
def test_a_port_may_be_a_name_of_etc_services() -> None:
    assert texts("tcp://*:finger") == ["tcp://*:79"]
    assert texts("udp://*:time") == ["udp://*:37"]
    assert texts("tcp://*:ftp-data") == ["tcp://*:20"]


def test_owner_and_mode_are_held_but_not_compared() -> None:
    [address] = parse_addresses("unix:///run/a?mode=0660&user=0&group=7")
    assert (address.mode, address.uid, address.gid) == (0o660, 0, 7)
    assert address == Address(Transport.UNIX, path="/run/a")
    assert hash(address) == hash(Address(Transport.UNIX, path="/run/a"))


def test_a_star_expands_to_one_address_of_each_family() -> None:
    [address] = parse_addresses("tcp://*:7")
    assert address.is_wildcard
    assert [str(a) for a in address.expanded()] == ["tcp://0.0.0.0:7", "tcp://[::]:7"]
    [one] = parse_addresses("tcp://[::1]:7")
    assert one.expanded() == (one,)
    assert not one.is_wildcard


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "starts with one of tcp://, udp://, unix://, unixgram://, unixpacket://"),
        ("127.0.0.1:7", "starts with one of"),
        ("tcp", "starts with one of"),
        ("TCP://127.0.0.1:7", "starts with one of"),
        ("http://127.0.0.1:7", "starts with one of"),
        (" tcp://127.0.0.1:7", "starts with one of"),
        ("tcp://", "expected a host and a port, such as tcp://127.0.0.1:7"),
        ("tcp://127.0.0.1", "expected a host and a port"),
        ("tcp://127.0.0.1:", "expected a host and a port"),
        ("tcp://[::1]", "expected a host and a port"),
        ("tcp://a/b:7", "expected a host and a port"),
        ("tcp://:7", 'the host is missing; "*" means every address'),
        ("tcp://::1:7", 'the host is missing; "*" means every address'),
        ("tcp://[]:7", "[] is not an IPv6 address"),
        ("tcp://[127.0.0.1]:7", "[127.0.0.1] is not an IPv6 address"),
        ("tcp://127.0.0.256:7", "127.0.0.256 is not an IPv4 address"),
        ("tcp://127.1:7", "127.1 is not an IPv4 address"),
        ("tcp://a..b:7", '"a..b" is not a host'),
        ("tcp://a\0b:7", '"a\\x00b" is not a host'),
        ("tcp:// :7", '" " is not a host'),
        ("tcp://[fe80::1]:7", "add its network interface, such as [fe80::1%eth0]"),
        ("udp://[febf::1]:7", "add its network interface, such as [febf::1%eth0]"),
        ("udp://[ff02::1]:7", "add its network interface, such as [ff02::1%eth0]"),
        ("tcp://[ff0e::1]:7", "no client can connect to ff0e::1 by tcp"),
        ("tcp://224.0.0.1:7", "no client can connect to 224.0.0.1 by tcp"),
        ("tcp://255.255.255.255:7", "no client can connect to 255.255.255.255 by tcp"),
        ("tcp://0:7", "0 is not an IPv4 address"),
        ("tcp://0x7f000001:7", "0x7f000001 is not an IPv4 address"),
        ("tcp://0x0.0:7", "0x0.0 is not an IPv4 address"),
        ("tcp://*:65536", "there is no port 65536 (the last is 65535)"),
        ("tcp://*:70000", "there is no port 70000 (the last is 65535)"),
        ("tcp://*:" + "9" * 100, "there is no port 99999999999999999999 (the last is 65535)"),
        ("tcp://*:-1", '"-1" is neither a port nor a name of /etc/services'),
        ("tcp://*:no such", '"no such" is neither a port nor a name of /etc/services'),
        ("tcp://*:a\0b", '"a\\x00b" is neither a port nor a name of /etc/services'),
        ("tcp://*:9-7", "expected a range of ports from low to high, above 0, not 9-7"),
        ("tcp://*:0-7", "expected a range of ports from low to high, above 0, not 0-7"),
        ("tcp://*:7-70000", "there is no port 70000 (the last is 65535)"),
        ("tcp://*:7-8-9", '"7-8-9" is neither a port nor a name of /etc/services'),
        ("unix://", "expected an absolute path (unix:///run/name.sock)"),
        ("unix://run/a", "or an abstract name (unix://@name)"),
        ("unix:///", "expected an absolute path"),
        ("unixgram://@", "or an abstract name (unixgram://@name)"),
        ("unix:///a\0b", "cannot contain NUL"),
        ("unix:///" + "a" * MAX_UNIX_PATH_BYTES, f"at most {MAX_UNIX_PATH_BYTES} bytes"),
        ("unix:///" + "é" * 60, f"at most {MAX_UNIX_PATH_BYTES} bytes"),
        ("unix:///a?mode=999", 'expected an octal mode, such as 0660, not "999"'),
        ("unix:///a?mode", 'expected an octal mode, such as 0660, not ""'),
        ("unix:///a?user=rooot", 'there is no user "rooot"'),
        ("unix:///a?user=a%00b", 'there is no user "a\\x00b"'),
        ("unix:///a?user=99999999999", 'there is no user "99999999999"'),
        ("unix:///a?group=٣", 'there is no group "٣"'),
        ("unix:///a?mod=0660", 'expected mode, user or group after the ?, not "mod"'),
    ],
)
def test_an_invalid_address_is_refused_with_the_reason(text: str, words: str) -> None:
    assert words in refusal(text)


def test_the_address_of_a_socket_has_the_text_that_an_operator_writes() -> None:
    of = Address.from_sockaddr
    assert str(of(Transport.TCP, ("::ffff:192.0.2.1", 7, 0, 0))) == "tcp://192.0.2.1:7"
    assert str(of(Transport.UDP, ("::1", 7, 0, 0))) == "udp://[::1]:7"
    assert str(of(Transport.UNIX, b"\0name")) == "unix://@name"
    assert str(of(Transport.UNIX, "/run/a")) == "unix:///run/a"
    assert str(of(Transport.UNIXGRAM, None)) == "unixgram://(unnamed)"
    assert str(of(Transport.UNIX, "")) == "unix://(unnamed)"


@given(st.ip_addresses(v=4))
def test_an_ipv4_mapped_address_becomes_ipv4(host: ipaddress.IPv4Address) -> None:
    assert unmapped(f"::ffff:{host}") == str(host)
    assert unmapped(str(host)) == str(host)


def test_only_an_ipv4_mapped_address_becomes_ipv4() -> None:
    for host in ("::1", "::ffff:1:2", "64:ff9b::192.0.2.1", "::192.0.2.1"):
        assert unmapped(host) == host


def test_a_transport_knows_its_socket() -> None:
    kinds = {t.value: (t.is_unix, t.is_datagram, t.socket_type) for t in Transport}
    assert kinds == {
        "tcp": (False, False, socket.SOCK_STREAM),
        "udp": (False, True, socket.SOCK_DGRAM),
        "unix": (True, False, socket.SOCK_STREAM),
        "unixgram": (True, True, socket.SOCK_DGRAM),
        "unixpacket": (True, False, socket.SOCK_SEQPACKET),
        "tcpmux": (False, False, socket.SOCK_STREAM),
    }


def test_a_link_local_address_names_its_interface() -> None:
    (address,) = parse_addresses("tcp://[fe80::1%lo]:7")
    assert str(address) == "tcp://[fe80::1%lo]:7"
    assert address.sockaddr == ("fe80::1", 7, 0, socket.if_nametoindex("lo"))
    assert parse_addresses("tcp://[fe80::1%1]:7")[0].sockaddr == ("fe80::1", 7, 0, 1)
    with pytest.raises(OSError, match="No such device: 'nowhere0'"):
        _ = parse_addresses("tcp://[fe80::1%nowhere0]:7")[0].sockaddr


def test_datagrams_are_received_at_the_address_of_many_hosts() -> None:
    assert texts("udp://224.0.0.1:7") == ["udp://224.0.0.1:7"]
    assert texts("udp://255.255.255.255:7") == ["udp://255.255.255.255:7"]
    assert texts("udp://[ff02::1%eth0]:7") == ["udp://[ff02::1%eth0]:7"]


def test_a_host_stays_a_name_until_it_is_looked_up() -> None:
    (address,) = parse_addresses("tcp://me.example:7")
    assert address.is_name
    assert not parse_addresses("tcp://*:7")[0].is_name
    found = address.at("192.0.2.1", "me.example")
    assert (found.is_name, found.listed) == (False, address)
