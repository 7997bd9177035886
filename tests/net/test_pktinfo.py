"""Which local address a datagram came to, told by the real kernel over loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from superd.net.addresses import parse_addresses
from superd.net.pktinfo import (
    ANCILLARY_BYTES,
    Ancillary,
    LocalAddress,
    enable_pktinfo,
    local_address,
)

IPV4_WILDCARD = parse_addresses("udp://0.0.0.0:7")[0]
IPV6_WILDCARD = parse_addresses("udp://[::]:7")[0]


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def server(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A wildcard socket that is told where its datagrams came to."""
    with socket.socket(request.param, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        enable_pktinfo(sock)
        sock.bind(("", 0))
        yield sock


@pytest.fixture(params=["ipv4", "both"])
def ipv4_server(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A wildcard socket for IPv4, or for IPv4 and IPv6 as systemd makes them."""
    family = socket.AF_INET6 if request.param == "both" else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        enable_pktinfo(sock)
        sock.bind(("", 0))
        yield sock


def received(server: socket.socket) -> tuple[LocalAddress, Any]:
    data, ancillary, _, peer = server.recvmsg(100, ANCILLARY_BYTES)
    assert data == b"hello"
    bound = IPV6_WILDCARD if server.family == socket.AF_INET6 else IPV4_WILDCARD
    return local_address(bound, tuple(ancillary)), peer


def test_the_address_that_was_asked_is_told_and_answered_from(server: socket.socket) -> None:
    hosts = ["::1"] if server.family == socket.AF_INET6 else ["127.0.0.1", "127.0.0.2", "127.9.9.9"]
    for host in hosts:
        with socket.socket(server.family, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.connect((host, server.getsockname()[1]))
            client.send(b"hello")
            asked, peer = received(server)
            assert (asked.address.host, asked.address.port) == (host, 7)
            assert asked.is_unicast
            server.sendmsg([b"answer"], asked.control, 0, peer)
            assert client.recv(100) == b"answer", "a connected client takes it from nowhere else"


def test_a_broadcast_is_told_from_a_datagram_for_one_host(ipv4_server: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.sendto(b"hello", ("127.255.255.255", ipv4_server.getsockname()[1]))
        asked, _ = received(ipv4_server)
    assert not asked.is_unicast


def test_a_multicast_is_told_from_a_datagram_for_one_host(ipv4_server: socket.socket) -> None:
    group, loopback = "239.77.7.7", socket.inet_aton("127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        membership = socket.inet_aton(group) + loopback
        ipv4_server.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
        client.sendto(b"hello", (group, ipv4_server.getsockname()[1]))
        asked, _ = received(ipv4_server)
    assert not asked.is_unicast


def test_a_datagram_that_came_before_the_kernel_was_asked_is_answered() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        for sock in (server, client):
            sock.settimeout(10)
        server.bind(("", 0))
        client.connect(("127.0.0.2", server.getsockname()[1]))
        client.send(b"hello")
        enable_pktinfo(server)
        asked, peer = received(server)
        assert asked.address.host == "127.0.0.2"
        server.sendmsg([b"answer"], asked.control, 0, peer)
        assert client.recv(100) == b"answer"


def test_what_the_kernel_does_not_tell_is_the_wildcard_itself() -> None:
    stranger: Ancillary = (socket.SOL_SOCKET, socket.SCM_RIGHTS, b"")
    for ancillary in ((), (stranger,)):
        assert local_address(IPV4_WILDCARD, ancillary) == LocalAddress(IPV4_WILDCARD)
