"""Probes: a target that is down gets no client until it is up; each change is logged once."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.forward.places import Front, TcpTarget, UdpTarget, fronts
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

Made = dict[str, Front[TcpTarget]]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with fronts(tmp_path_factory.mktemp("superd"), SERVICES, TcpTarget) as made:
        yield made


def answer_until(target: socket.socket, answer: bytes, front: Front[Any], line: str) -> None:
    """Answer all probes at a socket until the log has another line with a text."""
    before = front.lines(line, 0)

    def is_logged() -> bool:
        if select.select([target], [], [], 0.01)[0]:
            answer_one(target, answer)
        return front.lines(line, 0) > before

    until(is_logged, f"{line!r} in the log")


def answer_one(target: socket.socket, answer: bytes) -> None:
    if target.type == socket.SOCK_DGRAM:
        _, source = target.recvfrom(100)
        target.sendto(answer, source)
        return
    server, _ = target.accept()
    server.settimeout(EVENT_TIMEOUT)
    with server, contextlib.suppress(OSError):  # the probe may have reset it
        server.sendall(answer)
        server.shutdown(socket.SHUT_WR)
        while server.recv(100):
            pass


def test_a_target_that_is_down_gets_no_client_until_it_is_up(front: Made) -> None:
    one = front["connect"]
    one.targets[0].refuse()
    assert one.lines(f"warning: target {one.targets[0]} is down: Connection refused") == 1
    with one.connect() as client, client_at(one, 1, client):
        pass
    one.targets[0].serve()
    assert one.lines(f"info: target {one.targets[0]} is up") == 1
    assert one.lines("is down") == 1
    with one.connect() as client, client_at(one, 0, client):
        pass


@contextlib.contextmanager
def client_at(front: Front[TcpTarget], number: int, client: socket.socket) -> Iterator[None]:
    """Accept at a target until the client is among the probes."""
    client.sendall(b"hello")

    def accepted() -> socket.socket | None:
        server = front.targets[number].accept()
        with contextlib.suppress(ConnectionError):
            if server.recv(100) == b"hello":
                return server
        server.close()
        return None

    with until(accepted, "the client"):
        yield


def test_an_answer_has_to_contain_the_expected_text(front: Made) -> None:
    asks = front["asks"]
    sock = asks.targets[0].sock
    name = f"target {asks.targets[0]}"
    down, up = f"warning: {name} is down: it answered", f"info: {name} is up"
    for wrong, shown in [
        (b"PON", "b'PON'"),
        (b"\xff\0\r\n\x1b[2Jforged: line" + bytes(100_000), r"b'\xff\x00\r\n\x1b[2Jforged: line"),
        (b"x" * 4096 + b"PONG", "b'xxx"),
        (b"", "nothing"),
    ]:
        answer_until(sock, wrong, asks, f"{down} {shown}")
        answer_until(sock, b"PONG" + b"x" * 100_000, asks, up)
    assert asks.lines("is down", 4) == asks.lines("is up", 4) == 4
    assert not any(line.startswith("forged") for line in asks.superd.log().splitlines())


def test_a_probe_can_expect_a_greeting(front: Made) -> None:
    one = front["listens"]
    answer_until(one.targets[0].sock, b"554 no", one, "is down: it answered b'554 no'")
    answer_until(one.targets[0].sock, b"220 mail", one, "is up")


@pytest.mark.parametrize(
    ("service", "sent"),
    [("one", b"PROXY UNKNOWN\r\nPING"), ("two", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")],
)
def test_a_probe_sends_its_own_header(front: Made, service: str, sent: bytes) -> None:
    def found() -> bool:  # such a probe resets, perhaps before the test has read
        with front[service].targets[0].accept() as server, contextlib.suppress(ConnectionError):
            return server.recv(100) == sent
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
    with fronts(tmp_path, UDP, UdpTarget, listen="udp://127.0.0.1:0") as made:
        one = made["udp"]
        answer_until(one.targets[0].sock, b"", one, "is down: it answered nothing")
        answer_until(one.targets[0].sock, b"pong" + bytes(60_000), one, "is up")
        one.targets[0].refuse()
        assert one.lines("is down: Connection refused") == 1
        gram = made["gram"]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(f"\0{NAME}-gram")
            answer_until(sock, b"pong", gram, "is up")
            answer_until(sock, b"\xff", gram, r"is down: it answered b'\xff'")
        assert gram.lines("is down: Connection refused", 1) == 1
