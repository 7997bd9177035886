"""Access lists: by tables, and against a model that compares every rule with every host."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superd.admission.access import AccessList, Rule, UnixPeer, Verdict
from superd.net.patterns import Network, parse_pattern


def access_list(allow: Sequence[str] | None, deny: Sequence[str] = ()) -> AccessList:
    rules = [Rule(True, parse_pattern(text)) for text in allow or ()]
    rules += [Rule(False, parse_pattern(text)) for text in deny]
    return AccessList(rules, has_allow=allow is not None)


ADMITTED, REFUSED, DEPENDS = Verdict.ADMITTED, Verdict.REFUSED, Verdict.DEPENDS_ON_NAME

HOSTS = [
    # allow, deny, host, verdict
    (None, [], "192.0.2.1", ADMITTED),
    ([], [], "192.0.2.1", REFUSED),
    (["*"], [], "192.0.2.1", ADMITTED),
    (["*"], ["*"], "192.0.2.1", REFUSED),
    (None, ["*"], "192.0.2.1", REFUSED),
    (["192.0.2.1"], ["*"], "192.0.2.1", ADMITTED),
    (["192.0.2.0/24"], [], "192.0.2.255", ADMITTED),
    (["192.0.2.0/24"], [], "192.0.3.0", REFUSED),
    (["192.0.2.0/24"], [], "192.0.1.255", REFUSED),
    (None, ["192.0.2.0/24"], "192.0.2.1", REFUSED),
    (None, ["192.0.2.0/24"], "192.0.3.1", ADMITTED),
    # the most specific rule decides, whichever list has it
    (["192.0.2.0/24"], ["192.0.0.0/16"], "192.0.2.1", ADMITTED),
    (["192.0.0.0/16"], ["192.0.2.0/24"], "192.0.2.1", REFUSED),
    (["192.0.0.0/16", "192.0.2.7"], ["192.0.2.0/24"], "192.0.2.7", ADMITTED),
    (["192.0.2.0/24"], ["192.0.2.0/24"], "192.0.2.1", REFUSED),
    (["0.0.0.0/0"], ["*"], "192.0.2.1", ADMITTED),
    # the lowest and highest addresses
    (["0.0.0.0/32"], [], "0.0.0.0", ADMITTED),
    (["255.255.255.255"], [], "255.255.255.255", ADMITTED),
    (["128.0.0.0/1"], [], "127.255.255.255", REFUSED),
    # IPv4 rules match no IPv6 address, and the reverse, but an IPv4-mapped address is IPv4
    (["0.0.0.0/0"], [], "2001:db8::1", REFUSED),
    (["::/0"], [], "192.0.2.1", REFUSED),
    (["::/0"], [], "2001:db8::1", ADMITTED),
    (None, ["127.0.0.0/8"], "::ffff:127.0.0.1", REFUSED),
    (["::ffff:127.0.0.0/104"], [], "127.0.0.1", ADMITTED),
    (["fe80::/10"], [], "fe80::1%lo", ADMITTED),
    (["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"], [], "ffff:" * 7 + "ffff", ADMITTED),
    # a range counts as the networks that it consists of
    (None, ["192.0.2.5-192.0.2.50"], "192.0.2.4", ADMITTED),
    (None, ["192.0.2.5-192.0.2.50"], "192.0.2.5", REFUSED),
    (None, ["192.0.2.5-192.0.2.50"], "192.0.2.50", REFUSED),
    (None, ["192.0.2.5-192.0.2.50"], "192.0.2.51", ADMITTED),
    (["192.0.2.0/24"], ["192.0.2.5-50"], "192.0.2.7", REFUSED),
    (["192.0.2.0-192.0.2.255"], ["192.0.2.0/24"], "192.0.2.1", REFUSED),
    (["192.0.2.0/24"], ["192.0.2.0-192.0.2.255"], "192.0.2.1", REFUSED),
    (["2001:db8::5-2001:db8::ff"], [], "2001:db8::80", ADMITTED),
    (["2001:db8::5-2001:db8::ff"], [], "2001:db8::100", REFUSED),
    (["192.0.2.5-50", "host.example"], [], "192.0.2.50", DEPENDS),
    # rules for host names
    (["host.example"], [], "192.0.2.1", DEPENDS),
    (["host.example"], ["192.0.2.1"], "192.0.2.1", REFUSED),
    (["192.0.2.1"], ["host.example"], "192.0.2.1", ADMITTED),
    (["192.0.2.0/24"], ["host.example"], "192.0.2.1", DEPENDS),
    (["user:0"], [], "192.0.2.1", REFUSED),
]


@pytest.mark.parametrize(("allow", "deny", "host", "expected"), HOSTS)
def test_an_access_list_admits_or_refuses_a_host_by_its_address(
    allow: list[str] | None, deny: list[str], host: str, expected: Verdict
) -> None:
    assert access_list(allow, deny).verdict(host) is expected


NAMES = [
    # allow, deny, confirmed name, admitted
    (["host.example"], [], "host.example", True),
    (["host.example"], [], "other.example", False),
    (["host.example"], [], "", False),
    ([".example"], [], "host.example", True),
    ([".example"], ["host.example"], "host.example", False),
    (["host.example"], [".example"], "host.example", True),
    ([".a.example"], [".example"], "x.a.example", True),
    (["host.example"], ["host.example"], "host.example", False),
    (["host.example"], ["192.0.0.0/16"], "host.example", True),
    (["192.0.0.0/16"], ["host.example"], "host.example", False),
    (["192.0.0.0/16"], ["host.example"], "other.example", True),
    # a host without a confirmed name may have a denied one
    (["192.0.0.0/16"], ["host.example"], "", False),
    (["*"], ["host.example"], "", False),
    (None, ["host.example"], "", False),
    (None, ["host.example"], "other.example", True),
    (["192.0.0.0/16", "host.example"], [], "", True),
]


@pytest.mark.parametrize(("allow", "deny", "name", "expected"), NAMES)
def test_an_access_list_admits_or_refuses_a_host_by_its_confirmed_name(
    allow: list[str] | None, deny: list[str], name: str, expected: bool
) -> None:
    rules = access_list(allow, deny)
    assert rules.verdict("192.0.2.1") is DEPENDS
    assert rules.admits_named("192.0.2.1", name) is expected


PEERS = [
    (None, [], UnixPeer(1000, (100,)), True),
    ([], [], UnixPeer(1000, (100,)), False),
    (["*"], [], UnixPeer(1000, (100,)), True),
    (["192.0.2.0/24"], [], UnixPeer(1000, (100,)), False),
    (["user:1000"], [], UnixPeer(1000, (100,)), True),
    (["user:1000"], [], UnixPeer(1001, (100,)), False),
    (["group:100"], [], UnixPeer(1000, (5, 100)), True),
    (["user:1000"], ["group:100"], UnixPeer(1000, (100,)), True),
    (["group:100"], ["user:1000"], UnixPeer(1000, (100,)), False),
    (["group:5"], ["group:100"], UnixPeer(1000, (5, 100)), False),
    (["*"], ["group:100"], UnixPeer(1000, (100,)), False),
    (["*"], [], UnixPeer(-1), True),
    (None, ["user:0"], UnixPeer(-1), True),
]


@pytest.mark.parametrize(("allow", "deny", "peer", "expected"), PEERS)
def test_an_access_list_admits_or_refuses_the_peer_of_a_unix_socket(
    allow: list[str] | None, deny: list[str], peer: UnixPeer, expected: bool
) -> None:
    rules = access_list(allow, deny)
    assert rules.admits(rules.rule_for_user(peer)) is expected


# A few bits only, so that networks nest and addresses hit them
SMALL_V4 = st.builds(
    lambda bits, length: ipaddress.ip_network((bits << 24, length), strict=False),
    st.integers(0, 255),
    st.integers(0, 32),
)
SMALL_V6 = st.builds(
    lambda bits, length: ipaddress.ip_network((bits << 120, length), strict=False),
    st.integers(0, 255),
    st.integers(0, 128),
)
NETWORKS = st.lists(st.tuples(st.booleans(), SMALL_V4 | SMALL_V6), max_size=12)
ADDRESSES = st.builds(lambda bits, low: ipaddress.IPv4Address(bits << 24 | low),
                      st.integers(0, 255), st.integers(0, 3)) | st.builds(
    lambda bits, low: ipaddress.IPv6Address(bits << 120 | low),
    st.integers(0, 255), st.integers(0, 3))  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(NETWORKS, st.booleans(), st.lists(ADDRESSES, max_size=20))
def test_an_access_list_of_any_networks_agrees_with_a_naive_model(
    networks: list[tuple[bool, ipaddress.IPv4Network | ipaddress.IPv6Network]],
    has_allow: bool,
    hosts: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
) -> None:
    rules = [Rule(allows, Network(network)) for allows, network in networks]
    judged = AccessList(rules, has_allow=has_allow)
    for host in hosts:
        matching = [(n.prefixlen, not a) for a, n in networks if host in n]
        expected = not max(matching)[1] if matching else not has_allow
        assert (judged.verdict(str(host)) is ADMITTED) is expected


def test_an_access_list_of_ten_thousand_networks_decides_correctly() -> None:
    networks = [ipaddress.ip_network(f"10.{n >> 8}.{n & 255}.0/24") for n in range(0, 20_000, 2)]
    rules = AccessList([Rule(True, Network(n)) for n in networks], has_allow=True)
    for number in range(20_000):
        expected = ADMITTED if number % 2 == 0 else REFUSED
        assert rules.verdict(f"10.{number >> 8}.{number & 255}.77") is expected
