"""Connections that are aborted at awkward moments: no byte before the reset is lost."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.forwarding.ends import (
    Pair,
    Stream,
    Target,
    descriptors_are_closed,
    entry,
    serving,
    stopped,
    wait_until_delivered,
)
from tests.support.clients import receive_to_end, reset
from tests.support.harness import EVENT_TIMEOUT, until
from tests.support.usage import private_memory

UNREAD_BYTES = 300_000  # more than the kernel buffers for a client that does not read

ENTRIES = {
    "plain": "",
    "short": 'half-close-timeout = "0s"',
    "header": 'proxy-protocol = "v1"',
}


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with contextlib.closing(Target()) as one:
        yield one


@pytest.fixture(scope="module")
def all_pairs(
    target: Target, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Pair]]:
    toml = "".join(entry(name, target, more=more) for name, more in ENTRIES.items())
    with serving(tmp_path_factory.mktemp("superd"), toml) as superd:
        yield {name: Pair(superd, name, target) for name in ENTRIES}


@pytest.fixture
def pair(all_pairs: dict[str, Pair]) -> Iterator[Pair]:
    one = all_pairs["plain"]
    with descriptors_are_closed(one.superd):
        yield one
        one.superd.wait_until_idle(one.service, 5)
    assert one.superd.counts(one.service)["errors"] == 0


def test_a_target_can_reset_with_much_data_waiting_for_it(pair: Pair) -> None:
    data = os.urandom(UNREAD_BYTES)
    with pair.open() as (client, server):
        Stream().fill(client)
        server.sendall(data)
        wait_until_delivered(server)
        reset(server)
        time.sleep(0.1)  # the test is about late reading
        got, how = receive_to_end(client)
    assert got == data
    assert how == "reset"


def test_a_target_can_reset_while_a_client_floods_it(pair: Pair) -> None:
    data = os.urandom(UNREAD_BYTES)
    for _ in range(10):
        with pair.open() as (client, server):
            over = threading.Event()

            def flood(client: socket.socket = client, over: threading.Event = over) -> None:
                with contextlib.suppress(OSError):
                    while not over.is_set():
                        client.send(bytes(1 << 20))

            def swallow(server: socket.socket = server) -> None:
                with contextlib.suppress(OSError):
                    while server.recv(1 << 20):
                        pass

            threads = [threading.Thread(target=work) for work in (flood, swallow)]
            for thread in threads:
                thread.start()
            server.sendall(data)
            wait_until_delivered(server)
            server.shutdown(socket.SHUT_RD)  # ends the reading thread; the peer does not see it
            threads[1].join(EVENT_TIMEOUT)
            reset(server)
            threads[0].join(0.05)
            over.set()
            got, _ = receive_to_end(client)  # the sending thread may have got the reset
            threads[0].join(EVENT_TIMEOUT)
            assert got == data


def test_a_reset_after_a_half_close_waits_for_a_slow_reader(all_pairs: dict[str, Pair]) -> None:
    data = os.urandom(UNREAD_BYTES)
    with all_pairs["short"].open() as (client, server):
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        server.sendall(data)
        wait_until_delivered(server)
        reset(server)
        time.sleep(1)  # longer than the interval of checks of half-closed connections
        assert receive_to_end(client) == (data, "reset")


def test_a_client_that_resets_is_released_if_its_target_does_not_read(
    all_pairs: dict[str, Pair],
) -> None:
    """Also without a half-close-timeout."""
    pair = all_pairs["short"]
    with pair.open() as (client, _):
        Stream().fill(client)
        reset(client)
        pair.superd.wait_until_idle(pair.service)


@pytest.mark.soak
def test_a_slow_reader_is_not_cut_off_while_it_reads(pair: Pair) -> None:
    data, got = os.urandom(600_000), b""
    with pair.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        server = pair.target.accept()
        server.sendall(data)
        wait_until_delivered(server)
        reset(server)
        while len(got) < 500_000:
            got += client.recv(4096)
            time.sleep(0.1)  # the test is about slow reading
        rest, how = receive_to_end(client)
    assert got + rest == data
    assert how == "reset"


@pytest.mark.parametrize("name", ["plain", "header"])
def test_an_answer_before_an_early_reset_reaches_the_client(
    all_pairs: dict[str, Pair], name: str
) -> None:
    """The target has accepted the connection, so its answer is for the client."""
    pair = all_pairs[name]
    for _ in range(5):
        with contextlib.ExitStack() as stack:
            with stopped(pair):
                clients = [stack.enter_context(pair.connect()) for _ in range(60)]
            for _ in clients:
                server = pair.target.accept()
                server.sendall(b"sorry")
                reset(server)
            for client in clients:
                assert receive_to_end(client) == (b"sorry", "reset")
    pair.superd.wait_until_idle(name)


def test_out_of_band_data_loses_nothing(pair: Pair) -> None:
    with pair.open() as (client, server):
        for end, other in ((client, server), (server, client)):
            with stopped(pair):
                end.send(b"before")
                end.send(b"!", socket.MSG_OOB)
                end.send(b"after")
            got = b""
            other.settimeout(2)
            while len(got) < 11:
                got += other.recv(100)
            assert got == b"beforeafter"
        client.send(b"?", socket.MSG_OOB)
        client.close()
        assert receive_to_end(server) == (b"", "fin")


@pytest.mark.parametrize("ends", [True, False])
def test_nothing_is_lost_after_an_out_of_band_byte_in_bulk_data(pair: Pair, ends: bool) -> None:
    """splice(2) stops there, and reports an end of input."""
    stream = Stream()
    with pair.open() as (client, server):

        def finish() -> None:
            client.send(b"!", socket.MSG_OOB)
            stream.push(client, 1 << 16)
            if ends:
                client.shutdown(socket.SHUT_WR)

        stream.fill(client)
        finishing = threading.Thread(target=finish)
        finishing.start()
        got = 0
        while finishing.is_alive():
            if select.select([server], [], [], 0.1)[0]:
                got += len(server.recv(1 << 20))
        while got < stream.count:
            part = server.recv(1 << 20)
            assert part
            got += len(part)
        assert got == stream.count
        if ends:
            assert server.recv(1) == b""


@pytest.mark.root
def test_connections_that_both_sides_reset_leave_no_memory_behind(pair: Pair) -> None:
    (worker,) = pair.superd.workers()

    def abort_connections(number: int) -> None:
        for _ in range(number):
            with pair.open() as (client, server):
                for _ in range(3):
                    Stream().push(client, 1 << 20)
                server.sendall(b"x")
                client.recv(1)
                reset(client)
                reset(server)

    abort_connections(100)
    before = private_memory(worker)
    abort_connections(300)
    growth = private_memory(worker) - before
    print(f"{growth / 300:.0f} bytes a connection")
    assert growth < 300 * 1000


def test_a_connection_that_ends_late_affects_no_other(pair: Pair) -> None:
    """A new connection has the descriptor of the side that was reset first."""
    with pair.open() as (client, server):
        server.sendall(os.urandom(UNREAD_BYTES))
        wait_until_delivered(server)
        reset(server)
        with pair.open_many(3) as others:
            assert receive_to_end(client)[1] == "reset"
            until(lambda: pair.superd.counts("plain")["active"] == 3, "the first connection to end")
            for other, its_server in others:
                other.sendall(b"hello")
                assert its_server.recv(100) == b"hello"


def test_connecting_stops_when_the_client_resets(tmp_path: Path) -> None:
    """Its target does not accept: the backlog is full."""
    with contextlib.closing(Target(backlog=0)) as busy, contextlib.ExitStack() as stack:
        for _ in range(4):  # more than the backlog; later connections get no answer
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(busy.sock.getsockname())
        with serving(tmp_path, entry("busy", busy, more='connect-timeout = "1m"')) as superd:
            client = superd.connect("busy")
            until(lambda: superd.counts("busy")["active"] == 1, "the client to be served")
            reset(client)
            superd.wait_until_idle("busy", 5)
