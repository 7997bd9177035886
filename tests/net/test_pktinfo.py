"""The local address of a datagram, as the kernel reports it over loopback."""

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
    """A wildcard socket that gets the local address of each datagram."""
    with socket.socket(request.param, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        enable_pktinfo(sock)
        sock.bind(("", 0))
        yield sock


@pytest.fixture(params=["ipv4", "both"])
def ipv4_server(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A wildcard socket for IPv4, or a dual-stack one as systemd makes it."""
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


def test_a_reply_leaves_from_the_address_that_the_client_sent_to(server: socket.socket) -> None:
    hosts = ["::1"] if server.family == socket.AF_INET6 else ["127.0.0.1", "127.0.0.2", "127.9.9.9"]
    for host in hosts:
        with socket.socket(server.family, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.connect((host, server.getsockname()[1]))
            client.send(b"hello")
            local, peer = received(server)
            assert (local.address.host, local.address.port) == (host, 7)
            assert local.is_unicast
            server.sendmsg([b"answer"], local.control, 0, peer)
            assert client.recv(100) == b"answer", "a connected client accepts no other source"


def test_a_broadcast_is_not_unicast(ipv4_server: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.sendto(b"hello", ("127.255.255.255", ipv4_server.getsockname()[1]))
        local, _ = received(ipv4_server)
    assert not local.is_unicast


def test_a_multicast_is_not_unicast(ipv4_server: socket.socket) -> None:
    group, loopback = "239.77.7.7", socket.inet_aton("127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        membership = socket.inet_aton(group) + loopback
        ipv4_server.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
        client.sendto(b"hello", (group, ipv4_server.getsockname()[1]))
        local, _ = received(ipv4_server)
    assert not local.is_unicast


def test_a_datagram_queued_before_the_option_was_set_is_answered() -> None:
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
        local, peer = received(server)
        assert local.address.host == "127.0.0.2"
        server.sendmsg([b"answer"], local.control, 0, peer)
        assert client.recv(100) == b"answer"


def test_without_a_report_the_local_address_is_the_wildcard() -> None:
    stranger: Ancillary = (socket.SOL_SOCKET, socket.SCM_RIGHTS, b"")
    for ancillary in ((), (stranger,)):
        assert local_address(IPV4_WILDCARD, ancillary) == LocalAddress(IPV4_WILDCARD)
