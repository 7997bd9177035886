"""Forged datagrams cannot make superd attack other hosts or itself.

All services here have amplify = true and would answer. Only the reflection guard stops them.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.conftest import Start
from tests.support.harness import Address, Superd, ask_udp
from tests.support.namespaces import Namespace, join, network_namespace
from tests.support.spoofing import Capture, spoof

pytestmark = [pytest.mark.root, pytest.mark.tool("ip")]

SERVICES = {"echo": 7, "daytime": 13, "qotd": 17, "chargen": 19, "time": 37, "message": 7051}
TOML = "[daemon]\n[defaults]\namplify = true\n" + "\n".join(
    f'[service.{name}]\nplugin = "{name}"\nlisten = "udp://*:{port}"'
    for name, port in SERVICES.items()
)

# ports of common services and of the services here, and 0
SOURCE_PORTS = (0, 7, 13, 17, 19, 37, 53, 123, 1023, 2049, 7051)
# this machine's own addresses
HOSTS = ("127.0.0.1", "127.0.0.2", "192.0.2.1", "::1", "2001:db8::1")
NO_HOSTS = (
    "0.0.0.0", "0.1.2.3", "127.255.255.255", "192.0.2.255", "224.0.0.1", "239.1.2.3", "240.1.2.3",
    "255.255.255.255", "::", "ff02::1", "ff0e::1",
)  # fmt: skip
CLIENT_PORT = 40000


@pytest.fixture(scope="module")
def neighbours() -> Iterator[tuple[Namespace, Namespace]]:
    """Two network namespaces connected by a veth pair; superd runs in the first."""
    with network_namespace() as home, network_namespace() as away:
        join(home, away)
        for address in ("192.0.2.1/24", "192.0.2.3/24", "2001:db8::1/64", "2001:db8::3/64"):
            home.add_address(address, "wire")
        for address in ("192.0.2.2/24", "2001:db8::2/64"):
            away.add_address(address, "wire")
        for setting in ("all", "default", "lo", "wire"):
            home.sysctl(f"net.ipv4.conf.{setting}.rp_filter=0")
        yield home, away


@pytest.fixture(scope="module")
def home(neighbours: tuple[Namespace, Namespace]) -> Namespace:
    return neighbours[0]


@pytest.fixture(scope="module")
def away(neighbours: tuple[Namespace, Namespace]) -> Namespace:
    return neighbours[1]


@pytest.fixture(scope="module")
def daemon(home: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Superd]:
    instance = Superd(tmp_path_factory.mktemp("superd"), TOML)
    yield instance.start(*home.wrapper)
    instance.stop()
    print(instance.log())


def local_host(family_of: str) -> str:
    return "::1" if ":" in family_of else "127.0.0.1"


def ask_every_service(host: str) -> None:
    """Get an answer from each service, so that it has handled all datagrams before."""
    for name, port in SERVICES.items():
        answer = ask_udp((host, port), b"x" * 600)
        assert answer or name == "chargen"


def answers(wire: Capture, asked: list[tuple[Address, Address]]) -> list[object]:
    """Return the datagrams of superd to forged sources."""
    forged = {source for source, _ in asked}
    served = set(SERVICES.values())
    return [
        datagram
        for datagram in wire.datagrams()
        if datagram.source[1] in served
        and datagram.target in forged
        and (datagram.source, datagram.target) not in asked
    ]


def send_all(asked: list[tuple[Address, Address]]) -> None:
    for source, target in asked:
        spoof(source, target)


def test_a_forged_datagram_from_a_port_of_a_client_is_answered(
    daemon: Superd, home: Namespace
) -> None:
    """Proves that the forged datagrams of the other tests reach superd."""
    with home.inside(), Capture() as wire:
        for host in HOSTS:
            asked = [((host, CLIENT_PORT), (local_host(host), port)) for port in SERVICES.values()]
            send_all(asked)
            ask_every_service(local_host(host))
            assert len(answers(wire, asked)) == len(SERVICES)


@pytest.mark.parametrize("host", HOSTS)
def test_a_datagram_from_the_port_of_a_service_is_never_answered(
    daemon: Superd, home: Namespace, host: str
) -> None:
    with home.inside(), Capture() as wire:
        asked = [
            ((host, source), (target, port))
            for source in SOURCE_PORTS
            for port in SERVICES.values()
            for target in {host, local_host(host)}
        ]
        send_all(asked)
        for _ in range(2):
            ask_every_service(local_host(host))
        assert answers(wire, asked) == []


@pytest.mark.parametrize("host", NO_HOSTS)
def test_a_datagram_from_an_address_of_no_single_host_is_never_answered(
    daemon: Superd, home: Namespace, host: str
) -> None:
    with home.inside(), Capture() as wire:
        asked = [((host, CLIENT_PORT), (local_host(host), port)) for port in SERVICES.values()]
        send_all(asked)
        ask_every_service(local_host(host))
        assert answers(wire, asked) == []


@pytest.mark.parametrize("host", HOSTS)
def test_a_service_never_answers_itself(daemon: Superd, home: Namespace, host: str) -> None:
    with home.inside(), Capture() as wire:
        for port in SERVICES.values():
            spoof((host, port), (host, port))
        ask_every_service(local_host(host))
        to_itself = [p for p in wire.datagrams() if p.source == p.target]
        assert len(to_itself) == len(SERVICES), "more datagrams than were forged"


def loops() -> list[tuple[Address, Address]]:
    """Return each pair of services on each host, as source and destination."""
    ports = SERVICES.values()
    return [((h, one), (h, other)) for h in HOSTS for one in ports for other in ports]


def test_two_services_never_answer_each_other(daemon: Superd, home: Namespace) -> None:
    before = {name: daemon.counts(name) for name in SERVICES}
    with home.inside(), Capture() as wire:
        send_all(loops())
        for host in ("127.0.0.1", "::1"):
            ask_every_service(host)
        asked = [(p.source, p.target) for p in wire.datagrams() if p.source[1] in SERVICES.values()]
        between = [ends for ends in asked if ends[1][1] in SERVICES.values()]
        assert len(between) == len(loops()), "more datagrams than were forged"
    for name in SERVICES:
        after = daemon.counts(name)
        refused = after["refused-source-port"] - before[name]["refused-source-port"]
        assert refused == len(HOSTS) * len(SERVICES)
        assert after["answers"] - before[name]["answers"] == 2


@pytest.mark.soak
def test_no_loop_starts_within_two_seconds(daemon: Superd, home: Namespace) -> None:
    with home.inside(), Capture() as wire:
        for ends in loops():
            wire.datagrams()
            spoof(*ends)
            deadline = time.monotonic() + 2.0
            seen = 0
            while time.monotonic() < deadline:
                seen += len(wire.datagrams())
                time.sleep(0.05)
            assert seen <= 4, ends


def test_a_broadcast_or_multicast_is_never_answered(
    daemon: Superd, home: Namespace, away: Namespace
) -> None:
    before = daemon.counts("echo")["refused-destination"]
    wire = "wire"
    with (
        away.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ipv4,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as ipv6,
    ):
        ipv4.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        ipv4.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, wire.encode())
        group_addresses = ["192.0.2.255", "255.255.255.255", "224.0.0.1"]
        for host in group_addresses:
            ipv4.sendto(b"hello", (host, 7))
        ipv6.sendto(b"hello", ("ff02::1", 7, 0, socket.if_nametoindex(wire)))
        for client, one in ((ipv4, ("192.0.2.1", 7)), (ipv6, ("2001:db8::1", 7))):
            client.settimeout(10)
            client.sendto(b"one", one)
            assert client.recv(100) == b"one", "an answer to a broadcast or multicast"
    refused = daemon.counts("echo")["refused-destination"] - before
    assert refused == len(group_addresses) + 1


@pytest.mark.parametrize("host", ["192.0.2.1", "192.0.2.3", "2001:db8::1", "2001:db8::3"])
@pytest.mark.parametrize("size", [0, 1, 1472, 65507])
def test_an_answer_over_the_wire_has_the_requested_address_as_its_source(
    daemon: Superd, away: Namespace, host: str, size: int
) -> None:
    with away.inside():
        assert ask_udp((host, 7), b"x" * size) == b"x" * size


def test_a_link_local_address_answers(daemon: Superd, home: Namespace, away: Namespace) -> None:
    home.add_address("fe80::77/64", "wire")
    away.add_address("fe80::78/64", "wire")
    with away.inside(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect(("fe80::77", 7, 0, socket.if_nametoindex("wire")))
        client.send(b"hello")
        assert client.recv(100) == b"hello"


def test_a_flood_of_forged_datagrams_makes_only_a_few_log_lines(
    start_superd: Start, home: Namespace
) -> None:
    number = 2000
    toml = '[service.echo]\nplugin = "echo"\nlisten = "udp://*:7777"'
    daemon = start_superd(toml, *home.wrapper)
    with home.inside():
        for _ in range(number):
            spoof(("192.0.2.2", 53), ("127.0.0.1", 7777))
        assert ask_udp(("127.0.0.1", 7777), b"hello") == b"hello"
    counts = daemon.counts("echo")
    assert counts["refused-source-port"] == number
    assert (counts["datagrams"], counts["answers"]) == (number + 1, 1)
    pattern = (
        r"datagram not answered: source-port; it comes from the port of a service, and"
        r" reflection-guard = true \(\d+ more like this\) service=echo peer=192.0.2.2"
    )
    daemon.wait_for_log(pattern)
    assert daemon.log().count("not answered") <= 10


def test_the_reflection_guard_can_be_switched_off(start_superd: Start, home: Namespace) -> None:
    """For old clients that send from the port of a service."""
    toml = '[service.echo]\nplugin = "echo"\nlisten = "udp://*:7778"\nreflection-guard = false'
    start_superd(toml, *home.wrapper)
    with home.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.bind(("127.0.0.1", 53))
        client.sendto(b"hello", ("127.0.0.1", 7778))
        assert client.recv(100) == b"hello"
