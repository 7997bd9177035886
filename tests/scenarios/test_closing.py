"""The end of a connection: no answer is lost, no socket leaks, no address stays in use."""

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

LINGER = 1.0  # seconds
LARGE = 8 << 20  # bytes; more than the socket buffers of both sides hold

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


# Clients that send data which the service does not read


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
    """Send after the answer, then read again, which would show a reset."""
    first, how = receive_to_end(client)
    client.sendall(data)
    rest, how = receive_to_end(client)
    return first + rest, how


def drop_by_drop(client: socket.socket, data: bytes) -> tuple[bytes, str]:
    for number in range(min(len(data), 20)):
        client.sendall(data[number : number + 1])
    return receive_to_end(client)


CLIENTS: list[Callable[[socket.socket, bytes], tuple[bytes, str]]] = [
    before,
    during,
    after,
    drop_by_drop,
]


def assert_answered(served: Superd, service: str, rounds: int) -> None:
    for number in range(rounds):
        behave = CLIENTS[number % len(CLIENTS)]
        data = b"\n" * (1, 100_000, 3)[number % 3]
        if service == "message":
            data = b"?\n" + data
            behave = before if behave is after else behave  # it answers only after the first line
        with served.connect(service) as client:
            answer, how = behave(client, data)
        assert how == "fin", f"{behave.__name__} with {len(data)} bytes, round {number}"
        if service in ("daytime", "qotd", "message"):
            assert answer.endswith(b"\r\n")
        else:
            assert answer == b"answer"


@pytest.mark.parametrize("service", ANSWERING)
def test_an_answer_arrives_even_if_the_client_sends_unread_data(
    served: Superd, service: str
) -> None:
    assert_answered(served, service, 60)


@pytest.mark.soak
@pytest.mark.parametrize("service", ANSWERING)
def test_a_thousand_answers_arrive_even_if_the_clients_send_unread_data(
    served: Superd, service: str
) -> None:
    assert_answered(served, service, 1000)


def test_resets_by_clients_during_an_answer_are_neither_logged_nor_counted_as_errors(
    served: Superd,
) -> None:
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
    """Read to the end; return the number of bytes and how it ended."""
    data, how = receive_to_end(client)
    return len(data), how


def test_a_client_that_starts_to_read_late_gets_all_data(served: Superd) -> None:
    with served.connect("large") as first, served.connect("flood") as second:
        first.send(b"x")
        second.send(b"x")
        time.sleep(2 * LINGER)  # longer than the lingering close
        for client in (first, second):
            client.send(b"x")
            assert measured(client) == (LARGE, "fin")


@pytest.mark.soak
def test_a_client_that_reads_very_slowly_gets_all_data(served: Superd) -> None:
    """For minutes, only data in the socket buffers moves."""
    with served.connect("large") as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert measured(client) == (LARGE, "fin")


@pytest.mark.soak
def test_a_client_that_never_reads_is_reset_after_a_timeout(served: Superd) -> None:
    with served.connect("large") as client:
        until(lambda: served.counts("large")["active"] == 1, "the start of the session")
        served.wait_until_idle("large", timeout=60)
        size, how = measured(client)
        assert size < LARGE
        assert how == "reset"


def test_a_client_that_never_stops_sending_is_closed_after_the_linger_time(served: Superd) -> None:
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


def test_a_plugin_can_continue_after_close(served: Superd) -> None:
    """The client stays connected, so the lingering close ends the connection."""
    with served.connect("stubborn") as client:
        began = time.monotonic()
        assert receive_to_end(client) == (b"answer", "fin")
        served.wait_until_idle("stubborn")
        assert time.monotonic() - began > 1.4
    assert served.counts("stubborn")["errors"] == 0


# Clients that do not close


def assert_sockets_closed(served: Superd, each: int) -> None:
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
        until(lambda: open_descriptors([worker])[0] <= before, "the closing of the sockets")
        print(f"{len(clients)} sockets closed within {time.monotonic() - began:.2f} s")
    assert time.monotonic() - began < LINGER + 4


@pytest.mark.root
def test_sockets_of_clients_that_do_not_close_are_closed_after_the_linger_time(
    served: Superd,
) -> None:
    assert_sockets_closed(served, 50)


@pytest.mark.root
@pytest.mark.soak
def test_sockets_of_a_thousand_clients_that_do_not_close_are_closed(served: Superd) -> None:
    assert_sockets_closed(served, 250)


# State that is left in the kernel


def restart_after(start_superd: Start, clients: int) -> None:
    """Serve clients, where superd closes first and gets TIME_WAIT sockets, then start again."""
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
    assert f"0100007F:{port:04X}" in table  # a TIME_WAIT socket exists
    second = start_superd(toml)
    with second.connect("daytime") as client:
        assert len(receive_all(client)) == 26


def test_superd_can_bind_again_right_after_many_connections(start_superd: Start) -> None:
    restart_after(start_superd, 300)


@pytest.mark.soak
def test_superd_can_bind_again_right_after_ten_thousand_connections(start_superd: Start) -> None:
    restart_after(start_superd, 10_000)
