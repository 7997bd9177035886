"""Datagrams by source: each source has a target, its answers, a record, and limits."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.plugins.forward.places import Front, UdpTarget, fronts
from tests.support.clients import connect_unix
from tests.support.harness import EVENT_TIMEOUT, Address, until

NAME = f"superd-test-{os.getpid()}"
SERVICES = {
    "plain": 'to = "$0"',
    "wild": 'to = "$0"\nlisten = "udp://*:0"',
    "into": f'to = "unixgram://@{NAME}-into"',
    "from": f'to = "$0"\nlisten = "unixgram://@{NAME}-from"',
    "unnamed": f'to = "$0"\nlisten = "unixgram://@{NAME}-unnamed"',
    "brief": 'to = "$0", datagram-timeout = "300ms"',
    "once": 'to = "$0", datagram-replies = 1',
    "next": '$to, balance = "first", retry-after = "1h"',
    "batch": '$to, balance = "first"\npool = "batch"',
    "moved": '$to, balance = "first"',
    "alone": 'to = "$0"',
    "unix": f'to = "unixgram://@{NAME}-unix"',
    "proxied": 'to = ["$0", "$1"], balance = "first", proxy-protocol = "v2"',
    "few": 'to = "$0", datagram-timeout = "300ms"\nmax-connections = 2',
    "fewer": 'to = "$0", datagram-timeout = "300ms"\nmax-per-source = 1',
    "rated": 'to = "$0"\nrate = "2/h"\nburst = 2',
    "denied": 'to = "$0"\ndeny = ["127.0.0.9"]',
    "guarded": 'to = "$0"',
    **dict.fromkeys(
        ("scarce", "taking", "taking-2", "taking-3", "taking-4"),
        'to = "$0", datagram-timeout = "2s"\nrlimits.nofile = 48',
    ),
    "bound": 'to = "$0"\nrlimits.nofile = 80',
}
MAX_SOURCES = 80 // 4  # of `bound`: a quarter of its descriptors

Made = dict[str, Front[UdpTarget]]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    directory = tmp_path_factory.mktemp("superd")
    with fronts(directory, SERVICES, UdpTarget, listen="udp://127.0.0.1:0") as made:
        yield made


@contextlib.contextmanager
def client_of(
    front: Front[UdpTarget], source: Address = ("127.0.0.1", 0)
) -> Iterator[socket.socket]:
    """A connected client: it does not receive datagrams from other addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(EVENT_TIMEOUT)
        client.bind(source)
        client.connect(front.superd.address(front.service, "udp"))
        yield client


def exchange(
    client: socket.socket, target: UdpTarget, data: bytes = b"hello", answer: bytes = b""
) -> Address:
    """Send a datagram, receive the answer, and return the source that the target saw."""
    client.send(data)
    found, source = target.receive()
    assert found == data
    target.answer(answer or data[::-1], source)
    assert client.recv(1 << 17) == (answer or data[::-1])
    return source


def is_quiet(sock: socket.socket) -> bool:
    return not select.select([sock], [], [], 0)[0]


@pytest.mark.parametrize("size", [1, 1472, 65507])
def test_a_datagram_and_its_answer_are_unchanged(front: Made, size: int) -> None:
    plain = front["plain"]
    data = random.Random(size).randbytes(size)
    with client_of(plain) as client:
        first = exchange(client, plain.targets[0], data)
        assert exchange(client, plain.targets[0], b"again") == first


def test_an_empty_datagram_passes_both_ways(front: Made) -> None:
    target = front["plain"].targets[0]
    with client_of(front["plain"]) as client:
        client.send(b"")
        data, source = target.receive()
        assert data == b""
        target.answer(b"", source)
        assert client.recv(100) == b""


def test_an_answer_may_be_longer_than_the_request(front: Made) -> None:
    with client_of(front["plain"]) as client:
        exchange(client, front["plain"].targets[0], b"?", bytes(60_000))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "127.9.9.9", "::1"])
def test_answers_come_from_the_address_of_the_request(front: Made, host: str) -> None:
    wild = front["wild"]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    port = next(
        port for own, port in wild.superd.addresses("wild", "udp") if (":" in own) == (":" in host)
    )
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(EVENT_TIMEOUT)
        client.sendto(b"hello", (host, port))
        data, source = wild.targets[0].receive()
        wild.targets[0].answer(data, source)
        answer, where = client.recvfrom(100)
        assert (answer, where[:2]) == (b"hello", (host, port))


def test_a_client_of_two_addresses_is_answered_from_both(front: Made) -> None:
    wild, target = front["wild"], front["wild"].targets[0]
    port = next(port for own, port in wild.superd.addresses("wild", "udp") if ":" not in own)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(EVENT_TIMEOUT)
        asked = {}
        for host in ("127.0.0.1", "127.0.0.2"):
            client.sendto(host.encode(), (host, port))
            asked[host] = target.receive()[1]
        for host, source in reversed(asked.items()):
            target.answer(host.encode(), source)
            assert client.recvfrom(100) == (host.encode(), (host, port))


def test_sources_are_not_mixed_up(front: Made) -> None:
    plain, target = front["plain"], front["plain"].targets[0]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client_of(plain)) for _ in range(20)]
        for number, client in enumerate(clients):
            client.send(bytes([number]))
        came = [target.receive() for _ in clients]
        assert sorted(data[0] for data, _ in came) == list(range(20))
        assert len({source for _, source in came}) == 20
        for data, source in reversed(came):
            target.answer(b"to %d" % data[0], source)
        for number, client in enumerate(clients):
            assert client.recv(100) == b"to %d" % number
            assert is_quiet(client)


@contextlib.contextmanager
def unix_target(name: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as target:
        target.settimeout(EVENT_TIMEOUT)
        target.bind(f"\0{NAME}-{name}")
        yield target


def test_from_udp_to_a_unix_socket(front: Made) -> None:
    with unix_target("into") as target, client_of(front["into"]) as client:
        for data in (b"hello", b"", bytes(65507)):
            client.send(data)
            found, source = target.recvfrom(1 << 17)
            assert found == data
            target.sendto(b"goodbye", source)
            assert client.recv(100) == b"goodbye"


def test_from_a_unix_socket_to_udp(front: Made) -> None:
    target = front["from"].targets[0]
    with connect_unix(f"\0{NAME}-from", socket.SOCK_DGRAM) as client:
        client.send(bytes(100_000))  # longer than a datagram of udp
        exchange(client, target)
        exchange(client, target, bytes(65507))
    assert front["from"].lines("is left out", 0) == 0
    peers = {event["peer"] for event in front["from"].events("accepted", 1)}
    assert all(peer.startswith("@") for peer in peers)


def test_an_unnamed_unix_client_is_forwarded_but_not_answered(front: Made) -> None:
    unnamed, target = front["unnamed"], front["unnamed"].targets[0]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(b"<13>hello", f"\0{NAME}-unnamed")
        data, source = target.receive()
        assert data == b"<13>hello"
        target.answer(b"thanks", source)
        count = "refused-unnamed"
        until(lambda: unnamed.superd.counts("unnamed")[count] == 1, "its count")


def test_an_idle_source_is_dropped_and_recorded(front: Made) -> None:
    brief, target = front["brief"], front["brief"].targets[0]
    with client_of(brief) as client:
        first = exchange(client, target, b"hello", b"goodbye!")
        exchange(client, target, b"x")
        (event,) = brief.events("closed", 1)
        assert exchange(client, target) != first
        assert event["peer"] == "{}:{}".format(*client.getsockname())
    assert event["local"] == "udp://{}:{}".format(*brief.superd.address("brief", "udp"))
    assert (event["in"], event["out"], event["end"]) == (6, 9, "idle-timeout")
    assert event["target"] == str(target)
    assert event["duration"] >= 0.3
    brief.superd.wait_until_idle("brief")
    assert brief.superd.counts("brief")["accepted"] == 2
    assert brief.superd.counts("brief")["bytes-out"] == 14


def test_a_source_is_dropped_after_an_answer_to_each_request(front: Made) -> None:
    once, target = front["once"], front["once"].targets[0]
    with client_of(once) as client:
        first = exchange(client, target)
        assert once.events("closed", 1)[0]["end"] == "server"
        assert exchange(client, target) != first
        once.superd.wait_until_idle("once")
        client.send(b"A")  # like a resolver, for both families
        client.send(b"AAAA")
        for data, source in [target.receive(), target.receive()]:  # both, before either is answered
            target.answer(data.lower(), source)
        assert [client.recv(100), client.recv(100)] == [b"a", b"aaaa"]
    once.superd.wait_until_idle("once")
    assert len(once.events("closed", 3)) == 3


# Targets that fail


def test_a_refused_datagram_is_sent_to_the_next_target(front: Made) -> None:
    several = front["next"]
    several.targets[0].refuse()
    with client_of(several) as client:
        first = exchange(client, several.targets[1])
        assert exchange(client, several.targets[1], b"again") == first
    with client_of(several) as client:
        exchange(client, several.targets[1])
    text = f"target {several.targets[0]} is left out for 3600 s: Connection refused"
    assert several.lines(text) == several.lines("is left out") == 1


def test_a_refused_batch_is_sent_to_the_next_target(front: Made) -> None:
    several = front["batch"]
    several.targets[0].refuse()
    (worker,) = several.superd.workers("batch")
    with client_of(several) as client:
        os.kill(worker, signal.SIGSTOP)
        for number in range(3):
            client.send(bytes([number]))
        os.kill(worker, signal.SIGCONT)
        assert [several.targets[1].receive()[0] for _ in range(3)] == [b"\0", b"\1", b"\2"]


def test_the_next_target_is_used_if_one_stops_after_an_answer(front: Made) -> None:
    several = front["moved"]
    with client_of(several) as client:
        exchange(client, several.targets[0])
        several.targets[0].refuse()
        exchange(client, several.targets[1])
        exchange(client, several.targets[1])


def test_the_only_target_may_be_restarted(front: Made) -> None:
    alone = front["alone"]
    target = alone.targets[0]
    with client_of(alone) as client:
        exchange(client, target)
        target.refuse()
        client.send(b"lost")
        (event,) = alone.events("closed", 1)
        assert event["end"] == "unreachable"
        assert event["outcome"] == f"{target}: Connection refused"
        target.serve()
        exchange(client, target)


def test_a_unix_target_may_be_restarted(front: Made) -> None:
    with client_of(front["unix"]) as client:
        for _ in range(3):
            with unix_target("unix") as target:
                client.send(b"hello")
                data, source = target.recvfrom(100)
                target.sendto(data, source)
                assert client.recv(100) == b"hello"


def test_each_datagram_has_a_header_and_one_too_long_is_dropped(front: Made) -> None:
    proxied = front["proxied"]
    target = proxied.targets[0]
    with client_of(proxied) as client:
        client.send(bytes(65507))
        for _ in range(2):
            client.send(b"hello")
            data, source = target.receive()
            own = proxied.superd.address("proxied", "udp")
            ends = socket.inet_aton("127.0.0.1") * 2
            ports = client.getsockname()[1].to_bytes(2, "big") + own[1].to_bytes(2, "big")
            start = b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c"
            assert data == start + ends + ports + b"hello"
            target.answer(b"goodbye", source)
            assert client.recv(100) == b"goodbye"
    assert is_quiet(proxied.targets[1].sock)
    assert proxied.lines("is left out", 0) == 0


# Admission


def refused(front: Front[UdpTarget], send: Callable[[], object], reason: str) -> None:
    """Send a datagram, and expect a refusal with a reason in the record."""
    before = front.superd.counts(front.service)[f"refused-{reason}"]
    send()
    key = f"refused-{reason}"
    until(lambda: front.superd.counts(front.service)[key] == before + 1, "its count")
    assert front.events("refused", 1)[-1]["reason"] == reason
    assert is_quiet(front.targets[0].sock)


@pytest.mark.parametrize(
    ("service", "most", "reason"),
    [("few", 2, "max-connections"), ("fewer", 1, "max-per-source"), ("rated", 2, "rate")],
)
def test_sources_are_limited_as_connections_are(
    front: Made, service: str, most: int, reason: str
) -> None:
    one = front[service]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client_of(one)) for _ in range(most + 1)]
        for client in clients[:-1]:
            exchange(client, one.targets[0])
        refused(one, lambda: clients[-1].send(b"hello"), reason)
        exchange(clients[0], one.targets[0])
        if service != "rated":
            one.superd.wait_until_idle(service)
            exchange(clients[-1], one.targets[0])


def test_a_source_that_is_denied_is_refused(front: Made) -> None:
    denied = front["denied"]
    with client_of(denied, ("127.0.0.9", 0)) as client:
        refused(denied, lambda: client.send(b"hello"), "access")
    with client_of(denied, ("127.0.0.8", 0)) as client:
        exchange(client, denied.targets[0])


@pytest.mark.root
def test_a_source_port_of_a_service_is_refused(front: Made) -> None:
    guarded = front["guarded"]
    before = guarded.superd.counts("guarded")["refused-source-port"]
    with client_of(guarded, ("127.0.0.7", 53)) as client:
        client.send(b"hello")
    until(
        lambda: guarded.superd.counts("guarded")["refused-source-port"] == before + 1, "its count"
    )
    assert is_quiet(guarded.targets[0].sock)
    with client_of(guarded, ("127.0.0.7", 0)) as client:
        exchange(client, guarded.targets[0])


def test_the_source_that_was_idle_longest_is_evicted(front: Made) -> None:
    bound, target = front["bound"], front["bound"].targets[0]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client_of(bound)) for _ in range(MAX_SOURCES + 1)]
        seen = [exchange(client, target) for client in clients[:MAX_SOURCES]]
        assert exchange(clients[0], target) == seen[0]
        exchange(clients[MAX_SOURCES], target)
        (event,) = bound.events("closed", 1)
        assert event["end"] == "evicted"
        assert event["peer"] == "{}:{}".format(*clients[1].getsockname())
        assert exchange(clients[0], target) == seen[0]
        assert exchange(clients[2], target) == seen[2]
        assert bound.superd.counts("bound")["active"] == MAX_SOURCES


def test_a_shortage_of_descriptors_is_no_failure_of_a_target(front: Made) -> None:
    """Each service gets at most a quarter of the descriptors of their worker."""
    scarce, target = front["scarce"], front["scarce"].targets[0]
    others = ("taking", "taking-2", "taking-3", "taking-4")
    with contextlib.ExitStack() as stack:
        for name in (*others, "scarce"):
            for _ in range(40):
                client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                client.sendto(b"hello", scarce.superd.address(name, "udp"))
        until(lambda: scarce.superd.counts("scarce")["datagrams"] == 40, "all of them")
        assert 1 <= scarce.lines(f"error: cannot connect to {target}: Too many open files") < 10
    for name in (*others, "scarce"):
        scarce.superd.wait_until_idle(name)
    assert scarce.lines("is left out", 0) == 0
    while not is_quiet(target.sock):
        target.receive()
    with client_of(scarce) as client:
        exchange(client, target)
