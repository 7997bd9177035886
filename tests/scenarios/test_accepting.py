"""The accept loop: nobody who waits is dropped, whatever there is too little or too much of."""

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

WAITING = 20
SHORTAGE = 3.0  # seconds
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
    """Return a configuration whose workers are of our own user, so that we may limit them."""
    return SERVICES.format(loop=loop, user=os.getuid(), group=os.getgid())


TOML = services("auto")


def census(served: Superd) -> list[int]:
    return open_descriptors([served.pid, *served.workers()])


def is_well(served: Superd) -> None:
    """Check that new clients are served."""
    assert exchange(served.connect("echo"), b"hello") == b"hello"
    with served.connect("daytime") as client:
        assert len(receive_all(client)) == 26


# Too few descriptors


@pytest.mark.parametrize("loop", LOOPS)
def test_at_descriptor_exhaustion_clients_wait_and_nothing_spins(
    start_superd: Start, loop: str
) -> None:
    served = start_superd(services(loop))
    (worker,) = served.workers()
    idle = open_descriptors([worker])
    is_well(served)
    until(lambda: open_descriptors([worker]) == idle, "these clients to be gone")
    start = len(served.log())
    limit_descriptors(worker, lowest_free_descriptor(worker))
    began, computed = time.monotonic(), processor_time(worker)
    with connect_many(served.address("echo"), WAITING) as clients:
        for number, client in enumerate(clients):
            client.sendall(b"client %d" % number)
            client.setblocking(False)
        while time.monotonic() - began < SHORTAGE:
            assert served.answer()["state"] == "serving"
            assert ask_udp(served.address("echo", "udp"), b"still here") == b"still here"
            time.sleep(0.25)  # how it behaves for a while is what is measured
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
        is_well(served)
    print(f"{loop}: {computed:.2f} s computed in {SHORTAGE} s, served {waited:.3f} s after")
    assert computed < 0.1 * SHORTAGE
    assert "cannot accept, clients wait: Too many open files (EMFILE)" in log
    assert log.count("\n") <= SHORTAGE + 3
    assert served.workers() == [worker]


def test_who_never_reads_its_answer_makes_room_where_descriptors_run_out(
    start_superd: Start, tmp_path: Path
) -> None:
    """Each of them could have its descriptor for half a minute: the kernel has its answer still."""
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
        until(lambda: served.counts("large")["accepted"] == 100, "all to be answered")
        began = time.monotonic()
        assert exchange(served.connect("echo"), b"hello") == b"hello"
        assert time.monotonic() - began < 5


# Clients that go at once


def hurry(served: Superd, clients: int) -> None:
    is_well(served)
    before, start = census(served), len(served.log())
    for number in range(clients):
        service = ("echo", "daytime", "message")[number % 3]
        client = served.connect(service)
        if number % 2:
            client.send(b"half a line")
        reset(client)
    is_well(served)
    until(lambda: census(served) <= before, "all descriptors to be given back")
    assert served.log()[start:] == ""
    for service in ("echo", "daytime", "message"):
        until(partial(is_idle, served, service), f"{service} to have accepted all and lost them")
        assert served.counts(service)["errors"] == 0


def is_idle(served: Superd, service: str) -> bool:
    return served.counts(service)["active"] == 0


@pytest.mark.root
@pytest.mark.parametrize("loop", LOOPS)
def test_clients_that_reset_at_once_leave_nothing_behind(start_superd: Start, loop: str) -> None:
    hurry(start_superd(services(loop)), 2000)


@pytest.mark.root
@pytest.mark.soak
@pytest.mark.parametrize("loop", LOOPS)
def test_ten_thousand_clients_that_reset_at_once(start_superd: Start, loop: str) -> None:
    hurry(start_superd(services(loop)), 10_000)


# Many clients


def come_in_crowds(served: Superd, clients: int, at_once: int = 256) -> None:
    is_well(served)
    before = census(served)
    slowest = 0.0
    for start in range(0, clients, at_once):
        waiting = []
        for number in range(start, min(start + at_once, clients)):
            began = time.monotonic()
            waiting.append(connect_tcp(served.address("echo")))
            slowest = max(slowest, time.monotonic() - began)
            waiting[-1].sendall(b"client %d" % number)
        for number, client in enumerate(waiting, start):
            assert exchange(client, b"!") == b"client %d!" % number
    print(f"{clients} clients; the slowest to connect took {slowest:.4f} s")
    assert slowest < 0.9  # a full backlog would show as a second, the kernel's time to try again
    until(lambda: census(served) <= before, "all descriptors to be given back")


@pytest.mark.root
def test_a_thousand_clients_of_whom_256_are_there_at_once(served: Superd) -> None:
    come_in_crowds(served, 1000)


@pytest.mark.root
@pytest.mark.soak
def test_ten_thousand_clients_of_whom_256_are_there_at_once(served: Superd) -> None:
    come_in_crowds(served, 10_000)


def test_hundreds_wait_in_the_backlog_of_a_worker_that_is_stalled(served: Superd) -> None:
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


def test_they_are_served_by_its_successor_if_it_is_killed(served: Superd) -> None:
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
def test_those_who_wait_when_superd_is_stopped_are_still_served(
    start_superd: Start, loop: str
) -> None:
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
