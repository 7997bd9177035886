"""How forwarded connections end: both ends see what they would see without a forwarder.

An end of input is passed on while the other direction continues. A reset arrives as a reset, after
all data before it. unix(7) has no reset: the peer sees an end of input, or ECONNRESET if data that
it sent was still unread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.scenarios.forwarding.ends import (
    PAIRS,
    Pair,
    Target,
    abort,
    descriptors_are_closed,
    entry,
    serving,
    stays_quiet,
    wait_until_delivered,
)
from tests.support.clients import connect_and_receive, receive_to_end, reset
from tests.support.harness import EVENT_TIMEOUT, receive_all, until

SIZES = [0, 10, 1 << 20]


class SlowReader:
    """Reads in a thread of its own, a little at a time, until the end."""

    def __init__(self, sock: socket.socket) -> None:
        self.parts: list[bytes] = []
        self.how = ""
        self.sock = sock
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        try:
            while part := self.sock.recv(8192):
                self.parts.append(part)
                time.sleep(0.002)  # the test is about slow reading
        except ConnectionResetError:
            self.how = "reset"
        else:
            self.how = "fin"

    def ending(self) -> tuple[bytes, str]:
        self.thread.join(EVENT_TIMEOUT)
        return b"".join(self.parts), self.how


@pytest.fixture(scope="module", params=["asyncio", pytest.param("uvloop", marks=pytest.mark.soak)])
def pairs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Pair]]:
    """A service for each kind of listener and target, and `dead-` services whose targets refuse."""
    with contextlib.ExitStack() as stack:
        targets: dict[str, Target] = {}
        toml = f'[daemon]\nloop = "{request.param}"\n'
        for prefix in ("", "dead-"):
            for name in PAIRS:
                listen, kind = name.split("-")
                target = Target(kind, backlog=-1 if prefix else 512)
                stack.callback(target.close)
                targets[prefix + name] = target
                toml += entry(prefix + name, target, listen)
        superd = stack.enter_context(serving(tmp_path_factory.mktemp("superd"), toml))
        yield {
            name: Pair(superd, name, target, "unix" if "unix-" in name else "tcp")
            for name, target in targets.items()
        }


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Iterator[Pair]:
    """Each pair in turn; afterwards no client and no descriptor is left."""
    one = pairs[request.param]
    with descriptors_are_closed(one.superd):
        yield one
        one.superd.wait_until_idle(one.service, 5)
    assert one.superd.counts(one.service)["errors"] == 0


def as_seen_by(sock: socket.socket) -> str:
    """Return how a socket sees a reset, if all data that it sent was read."""
    return "fin" if sock.family == socket.AF_UNIX else "reset"


def is_broken(sock: socket.socket) -> bool:
    """Tell whether sending fails because the peer has closed."""
    try:
        sock.send(b"x")
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


# An end of input


def test_a_late_reply_reaches_a_client_that_has_half_closed(pair: Pair) -> None:
    with pair.open() as (client, server):
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(server) == b"question"
        assert stays_quiet(client, 0.4)
        server.sendall(b"reply")
        assert client.recv(100) == b"reply"
        server.sendall(b", and more")
        server.close()
        assert receive_to_end(client) == (b", and more", "fin")


def test_a_client_can_send_to_a_target_that_has_half_closed(pair: Pair) -> None:
    data = os.urandom(1 << 20)
    with pair.open() as (client, server):
        server.sendall(b"greeting")
        server.shutdown(socket.SHUT_WR)
        assert receive_to_end(client) == (b"greeting", "fin")
        reader = SlowReader(server)
        client.sendall(data)
        client.close()
        assert reader.ending() == (data, "fin")


def test_an_end_without_data_is_passed_on_in_both_directions(pair: Pair) -> None:
    with pair.open() as (client, server):
        client.shutdown(socket.SHUT_WR)
        assert receive_to_end(server) == (b"", "fin")
        assert stays_quiet(client, 0.1)
        server.shutdown(socket.SHUT_WR)
        assert receive_to_end(client) == (b"", "fin")


def test_data_arrives_if_both_sides_close_together(pair: Pair) -> None:
    for _ in range(20):
        with pair.open() as (client, server):
            client.sendall(b"a" * 10_000)
            server.sendall(b"b" * 20_000)
            client.shutdown(socket.SHUT_WR)
            server.shutdown(socket.SHUT_WR)
            assert receive_to_end(client) == (b"b" * 20_000, "fin")
            assert receive_to_end(server) == (b"a" * 10_000, "fin")


# A reset


@pytest.mark.parametrize("size", SIZES)
def test_a_reset_of_the_target_reaches_the_client_after_all_data(pair: Pair, size: int) -> None:
    data = os.urandom(size)
    with pair.open() as (client, server):
        client.sendall(b"question")
        assert server.recv(4) == b"ques"
        reader = SlowReader(client)
        server.sendall(data)
        wait_until_delivered(server)
        abort(server)
        assert reader.ending() == (data, as_seen_by(client))


@pytest.mark.parametrize("size", SIZES)
def test_a_reset_of_the_client_reaches_the_target_after_all_data(pair: Pair, size: int) -> None:
    data = os.urandom(size)
    with pair.open() as (client, server):
        server.sendall(b"greeting")
        assert client.recv(4) == b"gree"
        reader = SlowReader(server)
        client.sendall(data)
        wait_until_delivered(client)
        abort(client)
        assert reader.ending() == (data, as_seen_by(server))


def test_a_reset_after_the_end_of_input_is_passed_on(pair: Pair) -> None:
    """As from a client that crashes while the answer is sent."""
    with pair.open() as (client, server):
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(server) == b"question"
        server.sendall(b"half of")
        abort(client)
        until(partial(is_broken, server), "the target's send to fail")


def test_sending_to_a_closed_unix_client_fails(pairs: dict[str, Pair]) -> None:
    with pairs["unix-tcp"].open() as (client, server):
        client.close()
        assert server.recv(1) == b""
        until(partial(is_broken, server), "the target's send to fail")


def test_both_sides_can_reset_with_much_data_in_transit(pair: Pair) -> None:
    for _ in range(10):
        with pair.open() as (client, server):
            client.setblocking(False)
            server.setblocking(False)
            for sock in (client, server):
                with contextlib.suppress(BlockingIOError):
                    sock.send(bytes(1 << 20))
            abort(server)
            abort(client)


# A refusal


@pytest.mark.parametrize("name", PAIRS)
def test_a_refusal_of_the_target_reaches_the_client_fast(pairs: dict[str, Pair], name: str) -> None:
    pair = pairs[f"dead-{name}"]
    durations = []
    for _ in range(20):
        began = time.monotonic()
        if pair.listen == "tcp":
            assert connect_and_receive(pair.address) == (b"", "reset")
        else:
            with pair.connect() as client:
                assert receive_to_end(client) == (b"", "fin")
        durations.append(time.monotonic() - began)
    median = statistics.median(durations)
    print(f"refused after {median * 1000:.1f} ms, {max(durations) * 1000:.1f} at most")
    assert median < 0.05
    assert max(durations) < 1  # the machine may be busy


def test_a_client_that_resets_immediately_disturbs_no_other(pairs: dict[str, Pair]) -> None:
    pair = pairs["dead-tcp-tcp"]
    for _ in range(50):
        with contextlib.suppress(ConnectionResetError):  # the target's refusal came first
            reset(pair.connect())
    pair.superd.wait_until_idle(pair.service)
    with pairs["tcp-tcp"].open() as (client, server):
        client.sendall(b"still here")
        assert server.recv(100) == b"still here"
