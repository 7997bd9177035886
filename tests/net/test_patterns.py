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


BAD = [
    ("192.0.2.1/24", '"192.0.2.1/24" has bits beyond its mask (did you mean "192.0.2.0/24"?)'),
    ("2001:db8::1/32", 'did you mean "2001:db8::/32"?'),
    ("192.0.2.1/33", "is not an address or a network"),
    ("192.0.2", "is not an address or a network"),
    ("192.0.2.01", "is not an address or a network"),
    ("192.0.2.256", "is not an address or a network"),
    ("2001:db8::/129", "is not an address or a network"),
    ("1:2:3", "is not an address or a network"),
    ("/24", "is not an address or a network"),
    ("", "expected an address, a network, a host name, a .domain, user:NAME, group:NAME or"),
    ("a b", "expected an address, a network, a host name, a .domain, user:NAME, group:NAME or"),
    (
        "-a.example",
        "expected an address, a network, a host name, a .domain, user:NAME, group:NAME or",
    ),
    (
        "a..example",
        "expected an address, a network, a host name, a .domain, user:NAME, group:NAME or",
    ),
    (
        "*.example.com",
        "expected an address, a network, a host name, a .domain, user:NAME, group:NAME or",
    ),
    ("x" * 64, "expected an address, a network, a host name, a .domain, user:NAME, group:NAME or"),
    (
        ".".join(["x" * 50] * 6),
        "expected an address, a network, a host name, a .domain, user:NAME, group:NAME or",
    ),
    ("user:nosuchuser", 'there is no user "nosuchuser"'),
    ("user:", 'there is no user ""'),
    ("group:99999999999", 'there is no group "99999999999"'),
    ("evil\n", "expected an address, a network, a host name, a .domain, user:NAME, group:NAME or"),
]


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
