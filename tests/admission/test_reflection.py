"""The reflection guard: by tables, and against Python's classification of addresses."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superd.admission.reflection import ReflectionGuard, is_single_host
from superd.admission.refusals import Refusal

GUARD = ReflectionGuard([7007, 7019])

CLIENT_PORT = 40000


def test_the_guard_refuses_the_unix_sockets_of_superd_only() -> None:
    guard = ReflectionGuard([], ["/run/echo", b"\0abstract"])
    for name, refusal in {
        "/run/echo": Refusal.SOURCE_ADDRESS, b"\0abstract": Refusal.SOURCE_ADDRESS,
        "/run/ech": None, b"\0": None, "": None, None: None,
    }.items():  # fmt: skip
        assert guard.unix_refusal(name) is refusal


CASES = [
    ("127.0.0.1", CLIENT_PORT, True, None),
    ("192.0.2.1", 1024, True, None),
    ("192.0.2.1", 65535, True, None),
    ("::1", CLIENT_PORT, True, None),
    ("2001:db8::1", CLIENT_PORT, True, None),
    ("fe80::1%lo", CLIENT_PORT, True, None),
    ("::ffff:192.0.2.1", CLIENT_PORT, True, None),
    # ports of services: the small services, all others below 1024, NFS, and superd's own
    *(
        ("192.0.2.1", port, True, Refusal.SOURCE_PORT)
        for port in (0, 1, 7, 9, 13, 17, 19, 37, 53, 69, 123, 161, 1023, 2049, 7007, 7019)
    ),
    ("::1", 7, True, Refusal.SOURCE_PORT),
    # addresses of many hosts, or of none
    ("0.0.0.0", CLIENT_PORT, True, Refusal.SOURCE_ADDRESS),
    ("0.1.2.3", CLIENT_PORT, True, Refusal.SOURCE_ADDRESS),
    ("224.0.0.1", CLIENT_PORT, True, Refusal.SOURCE_ADDRESS),
    ("239.255.255.250", CLIENT_PORT, True, Refusal.SOURCE_ADDRESS),
    ("240.0.0.1", CLIENT_PORT, True, Refusal.SOURCE_ADDRESS),
    ("255.255.255.255", CLIENT_PORT, True, Refusal.SOURCE_ADDRESS),
    ("::", CLIENT_PORT, True, Refusal.SOURCE_ADDRESS),
    ("ff02::1", CLIENT_PORT, True, Refusal.SOURCE_ADDRESS),
    ("ff02::1%lo", CLIENT_PORT, True, Refusal.SOURCE_ADDRESS),
    ("::ffff:224.0.0.1", CLIENT_PORT, True, Refusal.SOURCE_ADDRESS),
    ("::ffff:0.0.0.0", CLIENT_PORT, True, Refusal.SOURCE_ADDRESS),
    # the request was sent to a multicast or broadcast address
    ("192.0.2.1", CLIENT_PORT, False, Refusal.DESTINATION),
    ("2001:db8::1", CLIENT_PORT, False, Refusal.DESTINATION),
]


@pytest.mark.parametrize(("host", "port", "to_one_host", "refusal"), CASES)
def test_the_guard_refuses_ports_of_services_and_addresses_of_many_hosts(
    host: str, port: int, to_one_host: bool, refusal: Refusal | None
) -> None:
    assert GUARD.refusal(host, port, to_one_host) is refusal


@given(st.ip_addresses(v=4), st.integers(0, 65535), st.booleans())
def test_the_guard_refuses_every_port_below_1024(
    host: ipaddress.IPv4Address, port: int, to_one_host: bool
) -> None:
    refusal = GUARD.refusal(str(host), port, to_one_host)
    assert (refusal is Refusal.SOURCE_PORT) == (port < 1024 or port in (2049, 7007, 7019))
    if refusal is None:
        assert to_one_host


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_one_host_unless_multicast_reserved_or_zero(
    host: ipaddress.IPv4Address,
) -> None:
    many = host.is_multicast or host.is_reserved or host in ipaddress.ip_network("0.0.0.0/8")
    assert is_single_host(str(host)) is not many
    assert is_single_host(f"::ffff:{host}") is not many


@given(st.ip_addresses(v=6))
def test_an_ipv6_address_is_one_host_unless_multicast_or_unspecified(
    host: ipaddress.IPv6Address,
) -> None:
    if host.ipv4_mapped:
        assert is_single_host(str(host)) is is_single_host(str(host.ipv4_mapped))
    else:
        assert is_single_host(str(host)) is not (host.is_multicast or host.is_unspecified)


@given(st.ip_addresses(network="ff00::/8") | st.ip_addresses(network="224.0.0.0/4"))
def test_a_multicast_group_is_not_a_single_host(
    host: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    assert not is_single_host(str(host))
