"""Datagrams by their source: each has a target and its answers, a record, and limits."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.plugins.forward.places import Front, Mailbox, fronts
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
ROOM = 80 // 4  # sources of `bound`

Made = dict[str, Front[Mailbox]]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    directory = tmp_path_factory.mktemp("superd")
    with fronts(directory, SERVICES, Mailbox, listen="udp://127.0.0.1:0") as made:
        yield made


@contextlib.contextmanager
def client_of(front: Front[Mailbox], source: Address = ("127.0.0.1", 0)) -> Iterator[socket.socket]:
    """A client that is connected, so that an answer from elsewhere would not reach it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(EVENT_TIMEOUT)
        client.bind(source)
        client.connect(front.superd.address(front.service, "udp"))
        yield client


def talk(
    client: socket.socket, box: Mailbox, data: bytes = b"hello", answer: bytes = b""
) -> Address:
    """Ask, be answered, and return who the target has seen."""
    client.send(data)
    found, source = box.receive()
    assert found == data
    box.answer(answer or data[::-1], source)
    assert client.recv(1 << 17) == (answer or data[::-1])
    return source


def is_quiet(sock: socket.socket) -> bool:
    return not select.select([sock], [], [], 0)[0]


@pytest.mark.parametrize("size", [1, 1472, 65507])
def test_a_datagram_and_its_answer_pass_as_they_are(front: Made, size: int) -> None:
    plain = front["plain"]
    data = random.Random(size).randbytes(size)
    with client_of(plain) as client:
        first = talk(client, plain.places[0], data)
        assert talk(client, plain.places[0], b"again") == first


def test_an_empty_datagram_passes_both_ways(front: Made) -> None:
    box = front["plain"].places[0]
    with client_of(front["plain"]) as client:
        client.send(b"")
        data, source = box.receive()
        assert data == b""
        box.answer(b"", source)
        assert client.recv(100) == b""


def test_an_answer_may_be_longer_than_what_was_asked(front: Made) -> None:
    with client_of(front["plain"]) as client:
        talk(client, front["plain"].places[0], b"?", bytes(60_000))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "127.9.9.9", "::1"])
def test_answers_come_from_the_address_that_was_asked(front: Made, host: str) -> None:
    wild = front["wild"]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    port = next(
        port for own, port in wild.superd.addresses("wild", "udp") if (":" in own) == (":" in host)
    )
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(EVENT_TIMEOUT)
        client.sendto(b"hello", (host, port))
        data, source = wild.places[0].receive()
        wild.places[0].answer(data, source)
        answer, where = client.recvfrom(100)
        assert (answer, where[:2]) == (b"hello", (host, port))


def test_one_client_that_asks_two_of_our_addresses_is_answered_from_both(front: Made) -> None:
    wild, box = front["wild"], front["wild"].places[0]
    port = next(port for own, port in wild.superd.addresses("wild", "udp") if ":" not in own)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(EVENT_TIMEOUT)
        asked = {}
        for host in ("127.0.0.1", "127.0.0.2"):
            client.sendto(host.encode(), (host, port))
            asked[host] = box.receive()[1]
        for host, source in reversed(asked.items()):
            box.answer(host.encode(), source)
            assert client.recvfrom(100) == (host.encode(), (host, port))


def test_sources_are_not_mixed_up(front: Made) -> None:
    plain, box = front["plain"], front["plain"].places[0]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client_of(plain)) for _ in range(20)]
        for number, client in enumerate(clients):
            client.send(bytes([number]))
        came = [box.receive() for _ in clients]
        assert sorted(data[0] for data, _ in came) == list(range(20))
        assert len({source for _, source in came}) == 20
        for data, source in reversed(came):
            box.answer(b"to %d" % data[0], source)
        for number, client in enumerate(clients):
            assert client.recv(100) == b"to %d" % number
            assert is_quiet(client)


@contextlib.contextmanager
def unix_box(name: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as box:
        box.settimeout(EVENT_TIMEOUT)
        box.bind(f"\0{NAME}-{name}")
        yield box


def test_from_udp_to_a_unix_socket(front: Made) -> None:
    with unix_box("into") as box, client_of(front["into"]) as client:
        for data in (b"hello", b"", bytes(65507)):
            client.send(data)
            found, source = box.recvfrom(1 << 17)
            assert found == data
            box.sendto(b"goodbye", source)
            assert client.recv(100) == b"goodbye"


def test_from_a_unix_socket_to_udp(front: Made) -> None:
    box = front["from"].places[0]
    with connect_unix(f"\0{NAME}-from", socket.SOCK_DGRAM) as client:
        client.send(bytes(100_000))  # longer than any of udp
        talk(client, box)
        talk(client, box, bytes(65507))
    assert front["from"].lines("is left out", 0) == 0
    peers = {event["peer"] for event in front["from"].events("accepted", 1)}
    assert all(peer.startswith("@") for peer in peers)


def test_a_unix_client_without_a_name_is_heard_but_not_answered(front: Made) -> None:
    unnamed, box = front["unnamed"], front["unnamed"].places[0]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(b"<13>hello", f"\0{NAME}-unnamed")
        data, source = box.receive()
        assert data == b"<13>hello"
        box.answer(b"thanks", source)
        count = "refused-unnamed"
        until(lambda: unnamed.superd.counts("unnamed")[count] == 1, "its count")


def test_a_quiet_source_is_forgotten_and_has_a_record(front: Made) -> None:
    brief, box = front["brief"], front["brief"].places[0]
    with client_of(brief) as client:
        first = talk(client, box, b"hello", b"goodbye!")
        talk(client, box, b"x")
        (event,) = brief.events("closed", 1)
        assert talk(client, box) != first
        assert event["peer"] == "{}:{}".format(*client.getsockname())
    assert event["local"] == "udp://{}:{}".format(*brief.superd.address("brief", "udp"))
    assert (event["in"], event["out"], event["end"]) == (6, 9, "idle-timeout")
    assert event["target"] == str(box)
    assert event["duration"] >= 0.3
    brief.superd.wait_until_idle("brief")
    assert brief.superd.counts("brief")["accepted"] == 2
    assert brief.superd.counts("brief")["bytes-out"] == 14


def test_a_source_is_forgotten_after_an_answer_to_each_question(front: Made) -> None:
    once, box = front["once"], front["once"].places[0]
    with client_of(once) as client:
        first = talk(client, box)
        assert once.events("closed", 1)[0]["end"] == "server"
        assert talk(client, box) != first
        once.superd.wait_until_idle("once")
        client.send(b"A")  # as a resolver asks for both families
        client.send(b"AAAA")
        for data, source in [box.receive(), box.receive()]:  # both, before one has its answer
            box.answer(data.lower(), source)
        assert [client.recv(100), client.recv(100)] == [b"a", b"aaaa"]
    once.superd.wait_until_idle("once")
    assert len(once.events("closed", 3)) == 3


# Targets that fail


def test_a_datagram_that_is_refused_is_sent_to_the_next_target(front: Made) -> None:
    several = front["next"]
    several.places[0].refuse()
    with client_of(several) as client:
        first = talk(client, several.places[1])
        assert talk(client, several.places[1], b"again") == first
    with client_of(several) as client:
        talk(client, several.places[1])
    text = f"target {several.places[0]} is left out for 3600 s: Connection refused"
    assert several.lines(text) == several.lines("is left out") == 1


def test_all_that_came_at_once_is_sent_to_the_next_target(front: Made) -> None:
    several = front["batch"]
    several.places[0].refuse()
    (worker,) = several.superd.workers("batch")
    with client_of(several) as client:
        os.kill(worker, signal.SIGSTOP)
        for number in range(3):
            client.send(bytes([number]))
        os.kill(worker, signal.SIGCONT)
        assert [several.places[1].receive()[0] for _ in range(3)] == [b"\0", b"\1", b"\2"]


def test_a_target_that_goes_after_it_has_answered_is_left_for_the_next(front: Made) -> None:
    several = front["moved"]
    with client_of(several) as client:
        talk(client, several.places[0])
        several.places[0].refuse()
        talk(client, several.places[1])
        talk(client, several.places[1])


def test_the_only_target_may_be_restarted(front: Made) -> None:
    alone = front["alone"]
    box = alone.places[0]
    with client_of(alone) as client:
        talk(client, box)
        box.refuse()
        client.send(b"lost")
        (event,) = alone.events("closed", 1)
        assert event["end"] == "unreachable"
        assert event["outcome"] == f"{box}: Connection refused"
        box.serve()
        talk(client, box)


def test_a_unix_target_may_be_restarted(front: Made) -> None:
    with client_of(front["unix"]) as client:
        for _ in range(3):
            with unix_box("unix") as box:
                client.send(b"hello")
                data, source = box.recvfrom(100)
                box.sendto(data, source)
                assert client.recv(100) == b"hello"


def test_each_datagram_has_its_header_and_what_is_too_long_harms_nobody(front: Made) -> None:
    proxied = front["proxied"]
    box = proxied.places[0]
    with client_of(proxied) as client:
        client.send(bytes(65507))
        for _ in range(2):
            client.send(b"hello")
            data, source = box.receive()
            own = proxied.superd.address("proxied", "udp")
            ends = socket.inet_aton("127.0.0.1") * 2
            ports = client.getsockname()[1].to_bytes(2, "big") + own[1].to_bytes(2, "big")
            start = b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c"
            assert data == start + ends + ports + b"hello"
            box.answer(b"goodbye", source)
            assert client.recv(100) == b"goodbye"
    assert is_quiet(proxied.places[1].sock)
    assert proxied.lines("is left out", 0) == 0


# Who may come


def refused(front: Front[Mailbox], send: Callable[[], object], reason: str) -> None:
    """Send what is to be refused, for a reason that the record tells."""
    before = front.superd.counts(front.service)[f"refused-{reason}"]
    send()
    key = f"refused-{reason}"
    until(lambda: front.superd.counts(front.service)[key] == before + 1, "its count")
    assert front.events("refused", 1)[-1]["reason"] == reason
    assert is_quiet(front.places[0].sock)


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
            talk(client, one.places[0])
        refused(one, lambda: clients[-1].send(b"hello"), reason)
        talk(clients[0], one.places[0])
        if service != "rated":
            one.superd.wait_until_idle(service)
            talk(clients[-1], one.places[0])


def test_a_source_that_is_denied_is_refused(front: Made) -> None:
    denied = front["denied"]
    with client_of(denied, ("127.0.0.9", 0)) as client:
        refused(denied, lambda: client.send(b"hello"), "access")
    with client_of(denied, ("127.0.0.8", 0)) as client:
        talk(client, denied.places[0])


@pytest.mark.root
def test_nobody_is_served_at_the_port_of_a_service(front: Made) -> None:
    guarded = front["guarded"]
    before = guarded.superd.counts("guarded")["refused-source-port"]
    with client_of(guarded, ("127.0.0.7", 53)) as client:
        client.send(b"hello")
    until(
        lambda: guarded.superd.counts("guarded")["refused-source-port"] == before + 1, "its count"
    )
    assert is_quiet(guarded.places[0].sock)
    with client_of(guarded, ("127.0.0.7", 0)) as client:
        talk(client, guarded.places[0])


def test_who_was_quiet_for_the_longest_makes_room(front: Made) -> None:
    bound, box = front["bound"], front["bound"].places[0]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client_of(bound)) for _ in range(ROOM + 1)]
        seen = [talk(client, box) for client in clients[:ROOM]]
        assert talk(clients[0], box) == seen[0]
        talk(clients[ROOM], box)
        (event,) = bound.events("closed", 1)
        assert event["end"] == "evicted"
        assert event["peer"] == "{}:{}".format(*clients[1].getsockname())
        assert talk(clients[0], box) == seen[0]
        assert talk(clients[2], box) == seen[2]
        assert bound.superd.counts("bound")["active"] == ROOM


def test_who_finds_no_descriptor_left_blames_no_target(front: Made) -> None:
    """Each service has at most every fourth descriptor of the worker that they share."""
    scarce, box = front["scarce"], front["scarce"].places[0]
    others = ("taking", "taking-2", "taking-3", "taking-4")
    with contextlib.ExitStack() as stack:
        for name in (*others, "scarce"):
            for _ in range(40):
                client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                client.sendto(b"hello", scarce.superd.address(name, "udp"))
        until(lambda: scarce.superd.counts("scarce")["datagrams"] == 40, "all of them")
        assert 1 <= scarce.lines(f"error: cannot connect to {box}: Too many open files") < 10
    for name in (*others, "scarce"):
        scarce.superd.wait_until_idle(name)
    assert scarce.lines("is left out", 0) == 0
    while not is_quiet(box.sock):
        box.receive()
    with client_of(scarce) as client:
        talk(client, box)
