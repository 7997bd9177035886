"""The accept loop: no pending client is lost, with few descriptors, resets and many clients."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import connect_many, connect_tcp, reset
from tests.support.harness import (
    EVENT_TIMEOUT,
    Superd,
    ask_udp,
    exchange,
    make_plugin,
    receive_all,
    until,
)
from tests.support.usage import (
    limit_descriptors,
    lowest_free_descriptor,
    open_descriptors,
    processor_time,
)

PENDING_CLIENTS = 20
SHORTAGE = 3.0  # seconds without free descriptors
LOOPS = ["uvloop", "asyncio"]

SERVICES = """
[daemon]
loop = "{loop}"

[defaults]
user = {user}
group = {group}

[service.echo]
plugin = "echo"
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]

[service.daytime]
plugin = "daytime"
listen = "tcp://127.0.0.1:0"

[service.message]
plugin = "message"
listen = "tcp://127.0.0.1:0"
"""


def services(loop: str) -> str:
    """Return a configuration whose workers run as the tests' user, so that tests can limit them."""
    return SERVICES.format(loop=loop, user=os.getuid(), group=os.getgid())


TOML = services("auto")


def descriptor_counts(served: Superd) -> list[int]:
    return open_descriptors([served.pid, *served.workers()])


def assert_serving(served: Superd) -> None:
    """Check that new clients are served."""
    assert exchange(served.connect("echo"), b"hello") == b"hello"
    with served.connect("daytime") as client:
        assert len(receive_all(client)) == 26


# Too few descriptors


@pytest.mark.parametrize("loop", LOOPS)
def test_clients_wait_while_descriptors_are_exhausted_and_the_worker_does_not_spin(
    start_superd: Start, loop: str
) -> None:
    served = start_superd(services(loop))
    (worker,) = served.workers()
    idle = open_descriptors([worker])
    assert_serving(served)
    until(lambda: open_descriptors([worker]) == idle, "the closing of these connections")
    start = len(served.log())
    limit_descriptors(worker, lowest_free_descriptor(worker))
    began, computed = time.monotonic(), processor_time(worker)
    with connect_many(served.address("echo"), PENDING_CLIENTS) as clients:
        for number, client in enumerate(clients):
            client.sendall(b"client %d" % number)
            client.setblocking(False)
        while time.monotonic() - began < SHORTAGE:
            assert served.answer()["state"] == "serving"
            assert ask_udp(served.address("echo", "udp"), b"still here") == b"still here"
            time.sleep(0.25)  # the test measures the behaviour over time
            for client in clients:
                with pytest.raises(BlockingIOError):
                    client.recv(1)
        computed = processor_time(worker) - computed
        log = served.log()[start:]
        limit_descriptors(worker, None)
        lifted = time.monotonic()
        for number, client in enumerate(clients):
            client.settimeout(15)
            assert client.recv(100) == b"client %d" % number
        waited = time.monotonic() - lifted
        assert_serving(served)
    print(f"{loop}: {computed:.2f} s computed in {SHORTAGE} s, served {waited:.3f} s after")
    assert computed < 0.1 * SHORTAGE
    assert "cannot accept, clients wait: Too many open files (EMFILE)" in log
    assert log.count("\n") <= SHORTAGE + 3
    assert served.workers() == [worker]


def test_lingering_connections_are_dropped_when_descriptors_are_exhausted(
    start_superd: Start, tmp_path: Path
) -> None:
    """A client that never reads could otherwise keep its descriptor for half a minute."""
    large = """
        from superd.plugin import Service, hookimpl

        class Large(Service):
            name = "large"

            def respond(self, request):
                return bytes(10_000)

        @hookimpl
        def superd_services():
            return [Large]
    """
    served = start_superd(
        """
        [defaults]
        listen = "tcp://127.0.0.1:0"
        rlimits = { nofile = 64 }

        [service.large]
        plugin = "large"

        [service.echo]
        plugin = "echo"
        """,
        env=make_plugin(tmp_path / "plugins", "large", large),
    )
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.settimeout(EVENT_TIMEOUT)
            client.connect(served.address("large"))
        until(lambda: served.counts("large")["accepted"] == 100, "the answers to all clients")
        began = time.monotonic()
        assert exchange(served.connect("echo"), b"hello") == b"hello"
        assert time.monotonic() - began < 5


# Clients that disconnect immediately


def reset_clients(served: Superd, clients: int) -> None:
    assert_serving(served)
    before, start = descriptor_counts(served), len(served.log())
    for number in range(clients):
        service = ("echo", "daytime", "message")[number % 3]
        client = served.connect(service)
        if number % 2:
            client.send(b"half a line")
        reset(client)
    assert_serving(served)
    until(lambda: descriptor_counts(served) <= before, "the closing of all descriptors")
    # the master may be too busy to read the records of so many connections in time
    lines = served.log()[start:].splitlines()
    assert [line for line in lines if "records of connections were lost" not in line] == []
    for service in ("echo", "daytime", "message"):
        until(partial(is_idle, served, service), f"{service} to be idle")
        assert served.counts(service)["errors"] == 0


def is_idle(served: Superd, service: str) -> bool:
    return served.counts(service)["active"] == 0


@pytest.mark.root
@pytest.mark.parametrize("loop", LOOPS)
def test_clients_that_reset_immediately_leave_no_descriptor_behind(
    start_superd: Start, loop: str
) -> None:
    reset_clients(start_superd(services(loop)), 2000)


@pytest.mark.root
@pytest.mark.soak
@pytest.mark.parametrize("loop", LOOPS)
def test_ten_thousand_clients_that_reset_immediately_leave_no_descriptor_behind(
    start_superd: Start, loop: str
) -> None:
    reset_clients(start_superd(services(loop)), 10_000)


# Many clients


def serve_many(served: Superd, clients: int, concurrency: int = 256) -> None:
    assert_serving(served)
    before = descriptor_counts(served)
    slowest = 0.0
    for start in range(0, clients, concurrency):
        pending = []
        for number in range(start, min(start + concurrency, clients)):
            began = time.monotonic()
            pending.append(connect_tcp(served.address("echo")))
            slowest = max(slowest, time.monotonic() - began)
            pending[-1].sendall(b"client %d" % number)
        for number, client in enumerate(pending, start):
            assert exchange(client, b"!") == b"client %d!" % number
    print(f"{clients} clients; the slowest to connect took {slowest:.4f} s")
    assert slowest < 0.9  # if the backlog was full, the kernel sends the SYN again after a second
    until(lambda: descriptor_counts(served) <= before, "the closing of all descriptors")


@pytest.mark.root
def test_a_thousand_clients_256_at_a_time_are_served_without_delay(served: Superd) -> None:
    serve_many(served, 1000)


@pytest.mark.root
@pytest.mark.soak
def test_ten_thousand_clients_256_at_a_time_are_served_without_delay(served: Superd) -> None:
    serve_many(served, 10_000)


def test_hundreds_of_clients_wait_in_the_backlog_of_a_stopped_worker(served: Superd) -> None:
    (worker,) = served.workers()
    os.kill(worker, signal.SIGSTOP)
    try:
        with connect_many(served.address("echo"), 800) as clients:
            for client in clients:
                client.sendall(b"waiting")
            os.kill(worker, signal.SIGCONT)
            for client in clients:
                assert client.recv(100) == b"waiting"
    finally:
        os.kill(worker, signal.SIGCONT)


def test_pending_clients_of_a_killed_worker_are_served_by_its_successor(served: Superd) -> None:
    (worker,) = served.workers()
    os.kill(worker, signal.SIGSTOP)
    with connect_many(served.address("echo"), 400) as clients:
        for client in clients:
            client.sendall(b"waiting")
        os.kill(worker, signal.SIGKILL)
        for client in clients:
            assert client.recv(100) == b"waiting"
    assert served.workers() != [worker]


@pytest.mark.parametrize("loop", LOOPS)
def test_pending_clients_are_served_when_superd_stops(start_superd: Start, loop: str) -> None:
    served = start_superd(services(loop))
    (worker,) = served.workers()
    os.kill(worker, signal.SIGSTOP)
    with connect_many(served.address("echo"), 400) as clients:
        for client in clients:
            client.sendall(b"waiting")
        served.signal(signal.SIGTERM)
        served.wait_for_log("stopping")
        os.kill(worker, signal.SIGCONT)
        for client in clients:
            assert exchange(client, b"!") == b"waiting!"
    assert served.wait() == 0
