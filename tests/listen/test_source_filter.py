"""The socket filter against the kernel: random networks, families and numbers of networks."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superd.listen.source_filter import SourceFilter, detach
from superd.net.patterns import IPNetwork

SOURCE = ipaddress.ip_address("127.9.8.7")


def attach(sock: socket.socket, dropped: Sequence[IPNetwork]) -> int:
    filter_ = SourceFilter(dropped)
    filter_.attach(sock)
    return filter_.room


def networks(*texts: str) -> list[IPNetwork]:
    return [ipaddress.ip_network(text) for text in texts]


@contextlib.contextmanager
def ends(source: str, local: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield a client's socket at `source` and a server's at `local`, for datagrams."""
    family = socket.AF_INET6 if ":" in local else socket.AF_INET
    kind = socket.AF_INET6 if ":" in source else socket.AF_INET
    with (
        socket.socket(family, socket.SOCK_DGRAM) as server,
        socket.socket(kind, socket.SOCK_DGRAM) as client,
    ):
        server.bind((local, 0))
        server.setblocking(False)
        client.bind((source, 0))
        host = local if local != "::" else source
        client.connect((host, server.getsockname()[1]))
        yield client, server


def passes(client: socket.socket, server: socket.socket) -> bool:
    """Return whether a datagram arrives; over loopback it has arrived once it is sent."""
    client.send(b"x")
    try:
        return server.recv(1) == b"x"
    except BlockingIOError:
        return False


@st.composite
def networks_near(draw: st.DrawFn) -> list[IPNetwork]:
    """Networks of which some contain the source and some are just beside it."""
    near = st.builds(lambda bit: int(SOURCE) ^ (1 << bit), st.integers(0, 31))
    address = st.one_of(st.just(int(SOURCE)), near, st.integers(0, 2**32 - 1))
    ipv4 = st.builds(lambda number, bits: (number, bits), address, st.integers(0, 32))
    chosen = draw(st.lists(ipv4, max_size=5))
    return [ipaddress.ip_network(one, strict=False) for one in chosen]


@given(networks_near())
@settings(max_examples=300, deadline=None)
def test_a_packet_is_dropped_if_and_only_if_a_network_has_its_source(
    dropped: list[IPNetwork],
) -> None:
    with ends(str(SOURCE), "127.0.0.1") as (client, server):
        attach(server, dropped)
        assert passes(client, server) == (not any(SOURCE in network for network in dropped))


@pytest.mark.parametrize("bits", range(129))
def test_an_ipv6_network_is_dropped_and_the_one_beside_it_passes(bits: int) -> None:
    with ends("::1", "::1") as (client, server):
        own = ipaddress.IPv6Network((1, bits), strict=False)
        attach(server, [own])
        assert not passes(client, server)
        if bits:
            beside = ipaddress.IPv6Network((1 ^ 1 << 128 - bits, bits), strict=False)
            attach(server, [beside])
            assert passes(client, server)


@pytest.mark.parametrize(
    ("source", "dropped", "expected"),
    [
        ("127.0.0.1", networks("::/0"), True),
        ("127.0.0.1", networks("127.0.0.1"), False),
        ("::1", networks("0.0.0.0/0"), True),
        ("::1", networks("::1"), False),
    ],
)
def test_on_a_socket_of_both_families_each_packet_is_judged_by_its_own(
    source: str, dropped: list[IPNetwork], *, expected: bool
) -> None:
    with ends(source, "::") as (client, server):
        attach(server, dropped)
        assert passes(client, server) == expected


def test_detach_and_an_empty_list_let_all_pass() -> None:
    with ends("127.0.0.1", "127.0.0.1") as (client, server):
        detach(server)
        for end in (lambda: detach(server), lambda: attach(server, ())):
            assert attach(server, networks("127.0.0.0/8")) == 1
            assert not passes(client, server)
            end()
            assert passes(client, server)


@pytest.mark.parametrize(
    ("template", "least"), [("10.{high}.{low}.1", 1000), ("2001:db8:{high}:{low}::/64", 500)]
)
def test_of_too_many_networks_the_first_are_dropped(template: str, least: int) -> None:
    many: Sequence[IPNetwork] = networks(
        *(template.format(high=n // 200, low=n % 200) for n in range(5000))
    )
    with ends("127.0.0.1", "127.0.0.1") as (client, server):
        assert least <= attach(server, many) < len(many)
        assert passes(client, server)
        assert least <= attach(server, [*networks("127.0.0.1"), *many])
        assert not passes(client, server)
