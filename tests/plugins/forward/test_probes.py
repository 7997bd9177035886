"""Probes: who is down gets no client, and comes back; each change is told once."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.forward.places import Front, Mailbox, Place, fronts
from tests.support.harness import EVENT_TIMEOUT, until

NAME = f"superd-test-{os.getpid()}"
ONCE = "fall = 1, rise = 1"
FAST = 'every = "30ms", timeout = "1s"'
SERVICES = {
    "connect": f'$to, balance = "first", probe = {{ {FAST}, fall = 2, rise = 2 }}',
    "asks": f'to = "$0", probe = {{ {FAST}, send = "PING\\n", expect = "PONG", {ONCE} }}',
    "listens": f'to = "$0", probe = {{ {FAST}, expect = "220 ", {ONCE} }}',
    "one": f'to = "$0", proxy-protocol = "v1", probe = {{ {FAST}, send = "PING", {ONCE} }}',
    "two": f'to = "$0", proxy-protocol = "v2", probe = {{ {FAST}, {ONCE} }}',
    "mute": 'to = "$0", probe = { every = "30ms", timeout = "100ms", expect = "x", fall = 1 }',
    "unix": f'to = "unix://@{NAME}-probed", probe = {{ {FAST}, expect = "ok", {ONCE} }}',
}
UDP = {
    "udp": f'to = "$0", probe = {{ {FAST}, send = "ping", expect = "pong", {ONCE} }}',
    "gram": f'to = "unixgram://@{NAME}-gram",'
    f' probe = {{ {FAST}, send = "ping", expect = "pong", {ONCE} }}',
}

Made = dict[str, Front[Place]]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with fronts(tmp_path_factory.mktemp("superd"), SERVICES, Place) as made:
        yield made


def answer_until(place: socket.socket, answer: bytes, front: Front[Any], line: str) -> None:
    """Answer all probes that come to a socket, until there is one more line of the log."""
    before = front.lines(line, 0)

    def told() -> bool:
        if select.select([place], [], [], 0.01)[0]:
            answer_one(place, answer)
        return front.lines(line, 0) > before

    until(told, f"{line!r} in the log")


def answer_one(place: socket.socket, answer: bytes) -> None:
    if place.type == socket.SOCK_DGRAM:
        _, source = place.recvfrom(100)
        place.sendto(answer, source)
        return
    taken, _ = place.accept()
    taken.settimeout(EVENT_TIMEOUT)
    with taken, contextlib.suppress(OSError):  # it may have been reset in the meantime
        taken.sendall(answer)
        taken.shutdown(socket.SHUT_WR)
        while taken.recv(100):
            pass


def test_a_target_that_is_down_gets_no_client_and_comes_back(front: Made) -> None:
    one = front["connect"]
    one.places[0].refuse()
    assert one.lines(f"warning: target {one.places[0]} is down: Connection refused") == 1
    with one.connect() as client, client_at(one, 1, client):
        pass
    one.places[0].serve()
    assert one.lines(f"info: target {one.places[0]} is up") == 1
    assert one.lines("is down") == 1
    with one.connect() as client, client_at(one, 0, client):
        pass


@contextlib.contextmanager
def client_at(front: Front[Place], number: int, client: socket.socket) -> Iterator[None]:
    """Find a client among the probes that a target has."""
    client.sendall(b"hello")

    def came() -> socket.socket | None:
        taken = front.places[number].accept()
        with contextlib.suppress(ConnectionError):
            if taken.recv(100) == b"hello":
                return taken
        taken.close()
        return None

    with until(came, "the client"):
        yield


def test_an_answer_has_to_hold_what_is_expected(front: Made) -> None:
    asks = front["asks"]
    sock = asks.places[0].sock
    name = f"target {asks.places[0]}"
    down, up = f"warning: {name} is down: it answered", f"info: {name} is up"
    for wrong, told in [
        (b"PON", "b'PON'"),
        (b"\xff\0\r\n\x1b[2Jforged: line" + bytes(100_000), r"b'\xff\x00\r\n\x1b[2Jforged: line"),
        (b"x" * 4096 + b"PONG", "b'xxx"),
        (b"", "nothing"),
    ]:
        answer_until(sock, wrong, asks, f"{down} {told}")
        answer_until(sock, b"PONG" + b"x" * 100_000, asks, up)
    assert asks.lines("is down", 4) == asks.lines("is up", 4) == 4
    assert not any(line.startswith("forged") for line in asks.superd.log().splitlines())


def test_a_probe_may_only_listen(front: Made) -> None:
    one = front["listens"]
    answer_until(one.places[0].sock, b"554 no", one, "is down: it answered b'554 no'")
    answer_until(one.places[0].sock, b"220 mail", one, "is up")


@pytest.mark.parametrize(
    ("service", "sent"),
    [("one", b"PROXY UNKNOWN\r\nPING"), ("two", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")],
)
def test_a_probe_has_a_header_of_its_own(front: Made, service: str, sent: bytes) -> None:
    def found() -> bool:  # a probe that only sends resets, perhaps before one has read
        with front[service].places[0].accept() as taken, contextlib.suppress(ConnectionError):
            return taken.recv(100) == sent
        return False

    until(found, "a probe with its header")
    assert front[service].lines("is down", 0) == 0


def test_no_answer_in_time_is_a_failure(front: Made) -> None:
    assert front["mute"].lines("is down: no answer in time") == 1


def test_a_unix_socket_is_probed(front: Made) -> None:
    one = front["unix"]
    name = f"target unix://@{NAME}-probed"
    assert one.lines(f"{name} is down: Connection refused") == 1
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0{NAME}-probed")
        sock.listen()
        answer_until(sock, b"ok", one, f"{name} is up")
    assert one.lines(f"{name} is down: Connection refused", 2) == 2


def test_datagrams_are_probed(tmp_path: Path) -> None:
    with fronts(tmp_path, UDP, Mailbox, listen="udp://127.0.0.1:0") as made:
        one = made["udp"]
        answer_until(one.places[0].sock, b"", one, "is down: it answered nothing")
        answer_until(one.places[0].sock, b"pong" + bytes(60_000), one, "is up")
        one.places[0].refuse()
        assert one.lines("is down: Connection refused") == 1
        gram = made["gram"]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(f"\0{NAME}-gram")
            answer_until(sock, b"pong", gram, "is up")
            answer_until(sock, b"\xff", gram, r"is down: it answered b'\xff'")
        assert gram.lines("is down: Connection refused", 1) == 1
