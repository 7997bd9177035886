"""The table of bans, against a naive model."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superd.admission.bans import MAX_BANS, BanTable
from superd.net.patterns import IPNetwork, parse_network

NETWORKS = st.sampled_from(
    [
        "192.0.2.1", "192.0.2.0/24", "192.0.2.0/25", "0.0.0.0/0", "2001:db8::1", "2001:db8::/32",
        "2001:db8::/64", "::/0", "fe80::/10",
    ]
).map(parse_network)  # fmt: skip
HOSTS = [
    "192.0.2.1", "192.0.2.200", "198.51.100.1", "2001:db8::1", "2001:db8:1::1", "fe80::1", "::1",
]  # fmt: skip
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("ban"), NETWORKS, st.integers(1, 100)),
        st.tuples(st.just("lift"), NETWORKS, st.just(0)),
        st.tuples(st.just("time"), st.none(), st.integers(0, 60)),
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(EVENTS)
def test_the_table_of_bans_agrees_with_a_naive_model_after_any_events(
    events: list[tuple[str, IPNetwork | None, int]],
) -> None:
    table, model, now = BanTable(), dict[IPNetwork, int](), 0
    for kind, network, number in events:
        if kind == "time":
            now += number
        elif kind == "ban" and network is not None:
            assert table.add(network, now + number)
            model[network] = now + number
        elif network is not None:
            table.remove(network)
            model.pop(network, None)
        assert len(table) == len(model)
        for host in HOSTS:
            address = ipaddress.ip_address(host)
            expected = any(address in net and until > now for net, until in model.items())
            assert table.is_banned(host, now) is expected


def test_a_ban_matches_mapped_addresses_as_ipv4_and_ignores_scopes() -> None:
    table = BanTable()
    table.add(parse_network("127.0.0.1"), 10)
    table.add(parse_network("fe80::1"), 10)
    assert table.is_banned("::ffff:127.0.0.1", 0)
    assert table.is_banned("fe80::1%lo", 0)
    assert not table.is_banned("fe80::2%lo", 0)


@pytest.mark.parametrize("version", [4, 6])
def test_the_table_holds_and_finds_the_maximum_number_of_bans(version: int) -> None:
    table = BanTable()
    first = int(ipaddress.ip_address("10.0.0.0" if version == 4 else "2001:db8::"))
    kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    hosts = [str(kind(first + number)) for number in range(MAX_BANS)]
    for host in hosts:
        assert table.add(parse_network(host), 5)
    assert all(table.is_banned(host, 0) for host in hosts)
    assert not table.is_banned(str(kind(first + MAX_BANS)), 0)
    assert not any(table.is_banned(host, 5) for host in hosts[:100])
