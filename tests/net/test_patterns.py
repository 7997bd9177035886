"""Patterns of allow and deny: their meaning, and what is refused."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superd.net.patterns import (
    Group,
    HostName,
    Network,
    Range,
    User,
    Wildcard,
    parse_network,
    parse_pattern,
)

GOOD = [
    ("*", "*", Wildcard),
    ("192.0.2.1", "192.0.2.1", Network),
    ("192.0.2.1/32", "192.0.2.1", Network),
    ("192.0.2.0/24", "192.0.2.0/24", Network),
    ("0.0.0.0/0", "0.0.0.0/0", Network),
    ("::/0", "::/0", Network),
    ("2001:DB8::/32", "2001:db8::/32", Network),
    ("::ffff:192.0.2.1", "192.0.2.1", Network),
    ("::ffff:192.0.2.0/120", "192.0.2.0/24", Network),
    ("::ffff:0:0/96", "0.0.0.0/0", Network),
    ("192.0.2.1-192.0.2.50", "192.0.2.1-192.0.2.50", Range),
    ("192.0.2.1 - 192.0.2.50", "192.0.2.1-192.0.2.50", Range),
    ("192.0.2.1-50", "192.0.2.1-192.0.2.50", Range),
    ("2001:DB8::1-2001:db8::ff", "2001:db8::1-2001:db8::ff", Range),
    ("::ffff:192.0.2.1-192.0.2.9", "192.0.2.1-192.0.2.9", Range),
    ("10.example.com", "10.example.com", HostName),
    ("1.2.0.192.in-addr.arpa", "1.2.0.192.in-addr.arpa", HostName),
    ("Host.Example.COM.", "host.example.com", HostName),
    (".example.com", ".example.com", HostName),
    ("localhost", "localhost", HostName),
    ("user:0", "user:0", User),
    ("user:root", "user:0", User),
    ("group:root", "group:0", Group),
]


@pytest.mark.parametrize(("text", "shown", "kind"), GOOD)
def test_a_pattern_parses_back_from_its_text(text: str, shown: str, kind: type) -> None:
    pattern = parse_pattern(text)
    assert isinstance(pattern, kind)
    assert str(pattern) == shown
    assert parse_pattern(shown) == pattern


EXPECTED = (
    "expected an address, a network, a range, a host name, a .domain, user:NAME, group:NAME or"
)
BAD = [
    ("192.0.2.1/24", '"192.0.2.1/24" has bits beyond its mask (did you mean "192.0.2.0/24"?)'),
    ("2001:db8::1/32", 'did you mean "2001:db8::/32"?'),
    ("192.0.2.1/33", "is not an address or a network"),
    ("192.0.2", 'is not an address or a network (did you mean "192.0.2.0/24"?)'),
    ("192.0.2.", 'did you mean "192.0.2.0/24"?'),
    ("192.0.2.x", 'did you mean "192.0.2.0/24"?'),
    ("192.0.2.*", 'did you mean "192.0.2.0/24"?'),
    ("192.X.x.x", 'did you mean "192.0.0.0/8"?'),
    ("10.*", 'did you mean "10.0.0.0/8"?'),
    ("10", 'did you mean "10.0.0.0/8"?'),
    ("192.0.2.9-192.0.2.1", "is not a range of addresses: expected the lower, a hyphen and"),
    ("192.0.2.1-192.0.2.300", "is not a range of addresses"),
    ("192.0.2.9-8", "is not a range of addresses"),
    ("192.0.2.9-2001:db8::1", "is not a range of addresses"),
    ("192.0.2.1-192.0.2.x", "expected an address, a network, a range, a host name"),
    ("192.0.2.[1-9]", "expected an address, a network, a range, a host name"),
    ("192.0.2.1:80", "is not an address or a network"),
    ("http://host.example/", "is not an address or a network"),
    ("0.0.0.0", 'no client has the address 0.0.0.0 (did you mean "0.0.0.0/0", or "*" for every'),
    ("::", 'no client has the address :: (did you mean "::/0", or "*" for every client?)'),
    ("ALL", '"ALL" is not the name of a host; write "*" for every client'),
    ("any", '"any" is not the name of a host; write "*" for every client'),
    ("none", '"none" is not the name of a host; write [] for no client'),
    ("LOCAL", '"LOCAL" is not the name of a host; write the networks that you mean'),
    ("PARANOID", '"PARANOID" is not the name of a host; a rule for a name or .domain never'),
    ("192.0.2.01", "is not an address or a network"),
    ("192.0.2.256", "is not an address or a network"),
    ("2001:db8::/129", "is not an address or a network"),
    ("1:2:3", "is not an address or a network"),
    ("/24", "is not an address or a network"),
    ("", EXPECTED),
    ("a b", EXPECTED),
    ("-a.example", EXPECTED),
    ("a..example", EXPECTED),
    ("*.example.com", EXPECTED),
    ("x" * 64, EXPECTED),
    (".".join(["x" * 50] * 6), EXPECTED),
    ("user:nosuchuser", 'there is no user "nosuchuser"'),
    ("user:", 'there is no user ""'),
    ("group:99999999999", 'there is no group "99999999999"'),
    ("evil\n", EXPECTED),
]


def test_a_range_is_the_fewest_networks_with_its_addresses() -> None:
    pattern = parse_pattern("192.0.2.254-192.0.3.3")
    assert isinstance(pattern, Range)
    assert [str(network) for network in pattern.networks] == ["192.0.2.254/31", "192.0.3.0/30"]


def test_where_only_networks_are_accepted_the_error_for_a_range_has_them() -> None:
    error = '"192.0.2.1-4" is a range; write its networks: 192.0.2.1, 192.0.2.2/31, 192.0.2.4'
    with pytest.raises(ValueError, match=re.escape(error)):
        parse_network("192.0.2.1-4")


@pytest.mark.parametrize(("text", "expected"), BAD)
def test_an_invalid_pattern_is_refused_with_the_remedy(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse_pattern(text)


@given(st.text())
def test_any_text_is_a_pattern_or_a_value_error(text: str) -> None:
    message = ""
    try:
        pattern = parse_pattern(text)
    except ValueError as error:
        message = str(error)
    else:
        assert parse_pattern(str(pattern)) == pattern
    assert message.isprintable()


@given(st.ip_addresses(), st.integers(0, 128))
def test_networks_agree_with_the_standard_library(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, bits: int
) -> None:
    network = ipaddress.ip_network((address, min(bits, address.max_prefixlen)), strict=False)
    assert parse_network(str(network)).version in (4, network.version)
    if network.version == 4:
        assert parse_network(str(network)) == network


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("host.example.com", "host.example.com", True),
        ("host.example.com", "other.host.example.com", False),
        (".example.com", "example.com", True),
        (".example.com", "a.b.example.com", True),
        (".example.com", "badexample.com", False),
        (".example.com", "example.com.evil.org", False),
    ],
)
def test_a_name_matches_itself_and_a_domain_every_name_below_it(
    pattern: str, name: str, matches: bool
) -> None:
    assert HostName(pattern).matches(name) is matches
