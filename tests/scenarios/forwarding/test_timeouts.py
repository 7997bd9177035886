"""Time-outs of forwarded connections: the connection is reset at both ends, and no other is."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.scenarios.forwarding.ends import (
    Pair,
    Stream,
    Target,
    entry,
    seconds_until_readable,
    serving,
    stays_quiet,
)
from tests.support.clients import is_open, receive_to_end, reset
from tests.support.harness import until

TIMEOUT = 1.0  # seconds, each time-out of the services
CHECK_DELAY = 0.5  # seconds that a check may come late, in addition to a tenth

ENTRIES = {
    "free": "",
    "half": 'half-close-timeout = "1s"',
    "endless": 'half-close-timeout = "0s"',
    "idle": '\nidle-timeout = "1s"',
    "session": '\nsession-timeout = "1s"',
    "first": '\nfirst-byte-timeout = "1s"',
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pair]]:
    with contextlib.ExitStack() as stack:
        targets = {name: Target() for name in ENTRIES}
        targets |= {f"black-hole-{kind}": Target(kind, backlog=0) for kind in ("tcp", "unix")}
        toml = ""
        for name, target in targets.items():
            stack.callback(target.close)
            if "hole" in name:
                target.fill_backlog(stack)
            toml += entry(name, target, more=ENTRIES.get(name, 'connect-timeout = "1s"'))
        superd = stack.enter_context(serving(tmp_path_factory.mktemp("superd"), toml))
        yield {name: Pair(superd, name, target) for name, target in targets.items()}


def both_are_reset(client: socket.socket, server: socket.socket, began: float) -> None:
    took = seconds_until_readable(client, began)
    print(f"reset after {took:.2f} s")
    assert 0.9 * TIMEOUT <= took < 1.1 * TIMEOUT + CHECK_DELAY + 1
    assert receive_to_end(client) == (b"", "reset")
    assert receive_to_end(server) == (b"", "reset")


@pytest.mark.parametrize("name", ["idle", "session"])
def test_both_ends_are_reset_after_a_timeout(pairs: dict[str, Pair], name: str) -> None:
    began = time.monotonic()
    with pairs[name].open() as (client, server), pairs["free"].open() as (other, _):
        client.sendall(b"hello")
        assert server.recv(100) == b"hello"
        server.sendall(b"welcome")
        assert client.recv(100) == b"welcome"
        both_are_reset(client, server, began)
        assert is_open(other)
    pairs[name].superd.wait_until_idle(name)


def test_a_client_without_a_first_byte_is_reset(pairs: dict[str, Pair]) -> None:
    began = time.monotonic()
    with pairs["first"].open() as (client, server), pairs["first"].open() as (other, peer):
        other.sendall(b"hello")
        assert peer.recv(100) == b"hello"
        both_are_reset(client, server, began)
        assert is_open(other)


def test_a_connection_is_not_idle_while_either_side_sends(pairs: dict[str, Pair]) -> None:
    with pairs["idle"].open() as (client, server):
        for sender, receiver in [(client, server)] * 2 + [(server, client)] * 2:
            assert stays_quiet(client, TIMEOUT / 3)
            sender.sendall(b"x")
            assert receiver.recv(100) == b"x"
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        for _ in range(4):
            assert stays_quiet(client, TIMEOUT / 3)
            server.sendall(b"x")
            assert client.recv(100) == b"x"


# Half-closed connections


@pytest.mark.parametrize("side", ["client", "server"])
def test_an_idle_half_closed_connection_is_reset(pairs: dict[str, Pair], side: str) -> None:
    with pairs["half"].open() as (client, server), pairs["half"].open() as (other, _):
        first, second = (client, server) if side == "client" else (server, client)
        first.shutdown(socket.SHUT_WR)
        began = time.monotonic()
        assert second.recv(1) == b""
        took = seconds_until_readable(first, began)
        print(f"reset after {took:.2f} s")
        assert TIMEOUT <= took < TIMEOUT + CHECK_DELAY + 1
        assert receive_to_end(first) == (b"", "reset")
        assert is_open(other)
    pairs["half"].superd.wait_until_idle("half")


@pytest.mark.parametrize("name", ["half", "endless"])
def test_an_active_half_closed_connection_continues(pairs: dict[str, Pair], name: str) -> None:
    with pairs[name].open() as (client, server):
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        for _ in range(5):
            pause = TIMEOUT / 2 if name == "half" else TIMEOUT / 4
            assert stays_quiet(client, pause)
            server.sendall(b"x")
            assert client.recv(100) == b"x"
        server.close()
        assert receive_to_end(client) == (b"", "fin")


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_reset_is_not_delayed_for_ever_by_a_stalled_reader(
    pairs: dict[str, Pair], both_ways: bool
) -> None:
    with pairs["half"].open() as (client, server):
        Stream().fill(client)
        if both_ways:
            Stream().fill(server)
        reset(client)
        until(
            lambda: pairs["half"].superd.counts("half")["active"] == 0, "the connection to end", 5
        )
        assert receive_to_end(server)[1] == "reset"


# A target that does not answer


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_target_that_never_answers_delays_only_its_clients(
    pairs: dict[str, Pair], kind: str
) -> None:
    pair = pairs[f"black-hole-{kind}"]
    delays = []
    with pairs["free"].open_many(20) as others, contextlib.ExitStack() as stack:
        began = time.monotonic()
        clients = [stack.enter_context(pair.connect()) for _ in range(50)]
        for client in clients:
            client.sendall(b"is there an answer?")
        while stays_quiet(clients[0], 0) and time.monotonic() - began < 5 * TIMEOUT:
            for client, server in others:
                sent_at = time.monotonic()
                client.sendall(b"x")
                assert server.recv(1) == b"x"
                delays.append(time.monotonic() - sent_at)
        took = [seconds_until_readable(client, began) for client in clients]
        for client in clients:
            assert receive_to_end(client) == (b"", "reset")
    worst = sorted(delays)[int(len(delays) * 0.99)]
    print(f"{min(took):.3f} to {max(took):.3f} s; others' p99 {worst * 1000:.2f} ms")
    assert 0.9 * TIMEOUT <= min(took) <= max(took) <= 1.1 * TIMEOUT + 0.05
    assert worst < 0.05
    pair.superd.wait_until_idle(pair.service)


def test_a_target_that_accepts_late_gets_the_connection(pairs: dict[str, Pair]) -> None:
    """For a unix socket no event reports room in the backlog, so superd polls."""
    with contextlib.ExitStack() as stack:
        pair = pairs["black-hole-unix"]
        client = stack.enter_context(pair.connect())
        client.sendall(b"hello")
        assert stays_quiet(client, 0.1)
        stack.enter_context(pair.target.accept())  # the connection that filled the backlog
        server = stack.enter_context(pair.target.accept())
        assert server.recv(100) == b"hello"
        server.close()
        assert receive_to_end(client) == (b"", "fin")
        pair.target.fill_backlog(stack)
