"""The end of a connection: no answer is lost, no socket is kept, no address stays taken."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import connect_many, receive_to_end, reset
from tests.support.harness import EVENT_TIMEOUT, Superd, receive_all, until
from tests.support.ports import free_port
from tests.support.usage import open_descriptors

LINGER = 1.0
LARGE = 8 << 20  # more than the kernels on both sides hold

PLUGIN = """
    import asyncio
    from superd.plugin import Service, hookimpl

    class {name}(Service):
        name = "{plugin}"
        {method}

    class Writer(asyncio.Protocol):
        def connection_made(self, transport):
            transport.write(b"answer")
            transport.close()

    @hookimpl
    def superd_services():
        return [{name}]
"""

METHODS = {
    "stream": 'async def stream(self, conn): await conn.send(b"answer")',
    "protocol": "def protocol(self, conn): return Writer()",
    "takeover": 'async def takeover(self, sock, conn): sock.send(b"answer")',
    "respond": 'def respond(self, request): return b"answer"',
    "large": "def respond(self, request): return bytes(8 << 20)",
    "flood": "async def stream(self, conn): await conn.send(bytes(8 << 20))",
    "stubborn": 'async def stream(self, conn): await conn.send(b"answer"); conn.close();'
    " await asyncio.sleep(1.5)",
}

PLUGINS = {
    name: PLUGIN.format(name=name.title(), plugin=name, method=method)
    for name, method in METHODS.items()
}

TOML = """
[daemon]
loop = "{loop}"

[service.daytime]
plugin = "daytime"
listen = "tcp://127.0.0.1:0"

[service.qotd]
plugin = "qotd"
listen = "tcp://127.0.0.1:0"

[service.message]
plugin = "message"
listen = "tcp://127.0.0.1:0"
options = { first = "answer" }
""" + "".join(
    f"""
[service.{name}]
plugin = "{name}"
listen = "tcp://127.0.0.1:0"
"""
    for name in METHODS
)

ANSWERING = ["daytime", "qotd", "message", "stream", "protocol", "takeover", "respond"]


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Clients that send what nobody reads


def before(client: socket.socket, data: bytes) -> tuple[bytes, str]:
    client.sendall(data)
    return receive_to_end(client)


def during(client: socket.socket, data: bytes) -> tuple[bytes, str]:
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    try:
        return receive_to_end(client)
    finally:
        sender.join(EVENT_TIMEOUT)


def after(client: socket.socket, data: bytes) -> tuple[bytes, str]:
    """Send when the answer has come, then read again: a reset would show there."""
    first, how = receive_to_end(client)
    client.sendall(data)
    rest, how = receive_to_end(client)
    return first + rest, how


def drop_by_drop(client: socket.socket, data: bytes) -> tuple[bytes, str]:
    for number in range(min(len(data), 20)):
        client.sendall(data[number : number + 1])
    return receive_to_end(client)


MANNERS: list[Callable[[socket.socket, bytes], tuple[bytes, str]]] = [
    before,
    during,
    after,
    drop_by_drop,
]


def be_answered(served: Superd, service: str, rounds: int) -> None:
    for number in range(rounds):
        manner = MANNERS[number % len(MANNERS)]
        data = b"\n" * (1, 100_000, 3)[number % 3]
        if service == "message":
            data = b"?\n" + data
            manner = before if manner is after else manner  # it answers only what it was told
        with served.connect(service) as client:
            answer, how = manner(client, data)
        assert how == "fin", f"{manner.__name__} with {len(data)} bytes, round {number}"
        if service in ("daytime", "qotd", "message"):
            assert answer.endswith(b"\r\n")
        else:
            assert answer == b"answer"


@pytest.mark.parametrize("service", ANSWERING)
def test_an_answer_arrives_whatever_the_client_has_sent(served: Superd, service: str) -> None:
    be_answered(served, service, 60)


@pytest.mark.soak
@pytest.mark.parametrize("service", ANSWERING)
def test_a_thousand_answers_arrive(served: Superd, service: str) -> None:
    be_answered(served, service, 1000)


def test_clients_that_reset_while_they_are_answered_are_no_news(served: Superd) -> None:
    (worker,) = served.workers()
    start = len(served.log())
    for number in range(50):
        for service in [*ANSWERING, "large", "flood"]:
            client = served.connect(service)
            if number % 2:
                client.send(b"x")
            if number % 3 == 0 and service != "message":
                client.recv(1)
            reset(client)
    for service in [*ANSWERING, "large", "flood"]:
        served.wait_until_idle(service)
        assert served.counts(service)["errors"] == 0
    assert served.log()[start:] == ""
    assert served.workers() == [worker]


def test_an_answer_larger_than_every_buffer_arrives(served: Superd) -> None:
    for data in (b"", b"x", bytes(100_000)):
        with served.connect("large") as client:
            client.sendall(data)
            assert measured(client) == (LARGE, "fin")


def measured(client: socket.socket) -> tuple[int, str]:
    """Return how much came, and how it ended."""
    data, how = receive_to_end(client)
    return len(data), how


def test_a_client_that_begins_to_read_late_gets_everything(served: Superd) -> None:
    with served.connect("large") as first, served.connect("flood") as second:
        first.send(b"x")
        second.send(b"x")
        time.sleep(2 * LINGER)  # the time to linger is over, and they have not read a byte
        for client in (first, second):
            client.send(b"x")
            assert measured(client) == (LARGE, "fin")


@pytest.mark.soak
def test_a_client_that_reads_very_slowly_gets_everything(served: Superd) -> None:
    """For minutes nothing moves but what the kernels have in their buffers."""
    with served.connect("large") as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert measured(client) == (LARGE, "fin")


@pytest.mark.soak
def test_a_client_that_never_reads_is_reset_when_patience_is_over(served: Superd) -> None:
    with served.connect("large") as client:
        until(lambda: served.counts("large")["active"] == 1, "the session to begin")
        served.wait_until_idle("large", timeout=60)
        size, how = measured(client)
        assert size < LARGE
        assert how == "reset"


def test_who_never_stops_sending_is_left_after_a_while(served: Superd) -> None:
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        services = ["respond", "stream", "protocol", "takeover"]
        clients = {stack.enter_context(served.connect(service)) for service in services}
        while clients and time.monotonic() - began < EVENT_TIMEOUT:
            for client in tuple(clients):
                try:
                    client.sendall(bytes(1000))
                except ConnectionError:
                    clients.remove(client)
    assert LINGER <= time.monotonic() - began < LINGER + 4
    for service in services:
        assert served.counts(service)["active"] == 0


def test_a_plugin_that_goes_on_after_close_is_not_disturbed(served: Superd) -> None:
    """The client stays, so that the connection ends by the time to linger."""
    with served.connect("stubborn") as client:
        began = time.monotonic()
        assert receive_to_end(client) == (b"answer", "fin")
        served.wait_until_idle("stubborn")
        assert time.monotonic() - began > 1.4
    assert served.counts("stubborn")["errors"] == 0


# Clients that keep their side open


def keep_open(served: Superd, each: int) -> None:
    (worker,) = served.workers()
    services = ["respond", "stream", "protocol", "takeover"]
    (before,) = open_descriptors([worker])
    with contextlib.ExitStack() as stack:
        clients = [
            client
            for service in services
            for client in stack.enter_context(connect_many(served.address(service), each))
        ]
        for client in clients:
            assert receive_all(client) == b"answer"
        began = time.monotonic()
        until(lambda: open_descriptors([worker])[0] <= before, "the sockets to be closed")
        print(f"{len(clients)} sockets closed within {time.monotonic() - began:.2f} s")
    assert time.monotonic() - began < LINGER + 4


@pytest.mark.root
def test_sockets_of_clients_that_keep_their_side_open_are_given_back(served: Superd) -> None:
    keep_open(served, 50)


@pytest.mark.root
@pytest.mark.soak
def test_a_thousand_clients_that_keep_their_side_open(served: Superd) -> None:
    keep_open(served, 250)


# What is left in the kernel


def come_and_restart(start_superd: Start, clients: int) -> None:
    """Let superd close first, so that it is its side that waits (TIME_WAIT), then start again."""
    port = free_port()
    toml = f"""
    [service.daytime]
    plugin = "daytime"
    listen = "tcp://127.0.0.1:{port}"
    """
    first = start_superd(toml)
    for _ in range(clients):
        with first.connect("daytime") as client:
            assert len(receive_all(client)) == 26
    first.stop()
    table = Path("/proc/net/tcp").read_text()
    assert f"0100007F:{port:04X}" in table  # else this would prove nothing
    second = start_superd(toml)
    with second.connect("daytime") as client:
        assert len(receive_all(client)) == 26


def test_a_restart_right_after_many_connections_binds(start_superd: Start) -> None:
    come_and_restart(start_superd, 300)


@pytest.mark.soak
def test_a_restart_right_after_ten_thousand_connections_binds(start_superd: Start) -> None:
    come_and_restart(start_superd, 10_000)
