"""Sources of datagrams with several workers, and when a worker is replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from tests.plugins.forward.places import Front, UdpTarget, fronts
from tests.support.harness import EVENT_TIMEOUT, Address, until

SERVICE = {"dns": 'to = "$0"'}


@contextlib.contextmanager
def dns(directory: Path, service: dict[str, str], daemon: str = "") -> Iterator[Front[UdpTarget]]:
    with fronts(directory, service, UdpTarget, listen="udp://127.0.0.1:0", daemon=daemon) as made:
        yield made["dns"]


@contextlib.contextmanager
def clients_of(front: Front[UdpTarget], number: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(number):
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.settimeout(EVENT_TIMEOUT)
            client.connect(front.superd.address("dns", "udp"))
            clients.append(client)
        yield clients


def send_and_see(client: socket.socket, target: UdpTarget, data: bytes = b"hello") -> Address:
    """Send a datagram, and return the source that the target sees."""
    client.send(data)
    found, source = target.receive()
    assert found == data
    return source


def test_a_source_has_one_socket_to_its_target_with_any_worker(tmp_path: Path) -> None:
    with (
        dns(tmp_path, SERVICE, "workers = 2\n") as front,
        clients_of(front, 8) as clients,
    ):
        target = front.targets[0]
        assert len(front.superd.workers()) == 2
        seen: dict[int, set[Address]] = {number: set() for number in range(len(clients))}
        for _ in range(20):
            for number, client in enumerate(clients):
                source = send_and_see(client, target)
                seen[number].add(source)
                target.answer(b"%d" % number, source)
                assert client.recv(100) == b"%d" % number
        assert [len(sources) for sources in seen.values()] == [1] * len(clients)
        assert front.superd.counts("dns")["accepted"] == len(clients)


def test_sources_get_pending_answers_while_superd_stops(tmp_path: Path) -> None:
    """Then superd stops without waiting for its drain-timeout."""
    with dns(tmp_path, SERVICE) as front, clients_of(front, 3) as clients:
        target = front.targets[0]
        sources = [send_and_see(client, target) for client in clients]
        front.superd.signal(signal.SIGTERM)
        front.superd.wait_for_log("stopping: connections may finish")
        for number, source in enumerate(sources):
            target.answer(b"%d" % number, source)
        assert [client.recv(100) for client in clients] == [b"0", b"1", b"2"]
        assert front.superd.wait() == 0
        ends = [event["end"] for event in front.events("closed", 3)]
        assert ends == ["drain"] * 3


def test_the_end_of_the_drain_closes_sources(tmp_path: Path) -> None:
    with (
        dns(tmp_path, SERVICE, 'drain-timeout = "200ms"\n') as front,
        clients_of(front, 1) as clients,
    ):
        send_and_see(clients[0], front.targets[0])
        front.superd.signal(signal.SIGTERM)
        assert front.superd.wait() == 0
        assert front.events("closed", 1)[0]["end"] == "drain"


def test_sources_without_a_target_do_not_delay_the_stop(tmp_path: Path) -> None:
    """Pending datagrams are read before the socket is closed, and not after."""
    service = {"dns": 'to = "unixgram://@superd-test-absent"'}
    with dns(tmp_path, service) as front, clients_of(front, 1) as (client,):
        (worker,) = front.superd.workers()
        os.kill(worker, signal.SIGSTOP)
        for _ in range(200):  # more than are read in one turn
            client.send(b"hello")
        front.superd.signal(signal.SIGTERM)
        front.superd.wait_for_log("stopping: connections may finish")
        time.sleep(0.2)  # until the worker has the message to stop
        os.kill(worker, signal.SIGCONT)
        assert front.superd.wait() == 0
        assert "Traceback" not in front.superd.log()
        front.events("closed", 1)


def test_a_reload_changes_the_target_and_delivers_pending_answers(
    tmp_path: Path,
) -> None:
    with dns(tmp_path, SERVICE) as front, clients_of(front, 2) as (known, other):
        old, new = front.targets[:2]
        source = send_and_see(known, old)
        before = front.superd.workers()
        front.superd.toml = front.superd.toml.replace(str(old), str(new))
        front.superd.write()
        assert front.superd.run("reload").returncode == 0
        until(lambda: set(front.superd.workers()).isdisjoint(before), "a new worker")
        old.answer(b"late", source)
        assert known.recv(100) == b"late"
        for client in (known, other):
            new.answer(b"new", send_and_see(client, new))
            assert client.recv(100) == b"new"
