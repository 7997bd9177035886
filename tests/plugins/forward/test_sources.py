"""Sources of datagrams where several workers serve, and where a worker gives way to another."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from tests.plugins.forward.places import Front, Mailbox, fronts
from tests.support.harness import EVENT_TIMEOUT, Address, until

SERVICE = {"dns": 'to = "$0"'}


@contextlib.contextmanager
def dns(directory: Path, service: dict[str, str], daemon: str = "") -> Iterator[Front[Mailbox]]:
    with fronts(directory, service, Mailbox, listen="udp://127.0.0.1:0", daemon=daemon) as made:
        yield made["dns"]


@contextlib.contextmanager
def clients_of(front: Front[Mailbox], number: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(number):
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.settimeout(EVENT_TIMEOUT)
            client.connect(front.superd.address("dns", "udp"))
            clients.append(client)
        yield clients


def asked(client: socket.socket, box: Mailbox, data: bytes = b"hello") -> Address:
    """Ask, and return who the target has seen; the answer is to come."""
    client.send(data)
    found, source = box.receive()
    assert found == data
    return source


def test_a_source_has_one_socket_to_its_target_whichever_worker_it_meets(tmp_path: Path) -> None:
    with (
        dns(tmp_path, SERVICE, "workers = 2\n") as front,
        clients_of(front, 8) as clients,
    ):
        box = front.places[0]
        assert len(front.superd.workers()) == 2
        seen: dict[int, set[Address]] = {number: set() for number in range(len(clients))}
        for _ in range(20):
            for number, client in enumerate(clients):
                source = asked(client, box)
                seen[number].add(source)
                box.answer(b"%d" % number, source)
                assert client.recv(100) == b"%d" % number
        assert [len(sources) for sources in seen.values()] == [1] * len(clients)
        assert front.superd.counts("dns")["accepted"] == len(clients)


def test_sources_still_have_their_answers_when_superd_stops(tmp_path: Path) -> None:
    """And superd does not wait for its drain-timeout once they have them."""
    with dns(tmp_path, SERVICE) as front, clients_of(front, 3) as clients:
        box = front.places[0]
        sources = [asked(client, box) for client in clients]
        front.superd.signal(signal.SIGTERM)
        front.superd.wait_for_log("stopping: connections may finish")
        for number, source in enumerate(sources):
            box.answer(b"%d" % number, source)
        assert [client.recv(100) for client in clients] == [b"0", b"1", b"2"]
        assert front.superd.wait() == 0
        ends = [event["end"] for event in front.events("closed", 3)]
        assert ends == ["drain"] * 3


def test_the_end_of_the_drain_is_the_end_of_sources(tmp_path: Path) -> None:
    with (
        dns(tmp_path, SERVICE, 'drain-timeout = "200ms"\n') as front,
        clients_of(front, 1) as clients,
    ):
        asked(clients[0], front.places[0])
        front.superd.signal(signal.SIGTERM)
        assert front.superd.wait() == 0
        assert front.events("closed", 1)[0]["end"] == "drain"


def test_sources_that_cannot_be_served_do_not_keep_superd_from_stopping(tmp_path: Path) -> None:
    """What waits at the socket is taken before it is closed, and not after."""
    service = {"dns": 'to = "unixgram://@superd-test-nobody"'}
    with dns(tmp_path, service) as front, clients_of(front, 1) as (client,):
        (worker,) = front.superd.workers()
        os.kill(worker, signal.SIGSTOP)
        for _ in range(200):  # more than are taken in one turn
            client.send(b"hello")
        front.superd.signal(signal.SIGTERM)
        front.superd.wait_for_log("stopping: connections may finish")
        time.sleep(0.2)  # until the worker has been told
        os.kill(worker, signal.SIGCONT)
        assert front.superd.wait() == 0
        assert "Traceback" not in front.superd.log()
        front.events("closed", 1)


def test_a_reload_gives_new_datagrams_new_targets_and_old_ones_their_answers(
    tmp_path: Path,
) -> None:
    with dns(tmp_path, SERVICE) as front, clients_of(front, 2) as (known, other):
        old, new = front.places[:2]
        source = asked(known, old)
        before = front.superd.workers()
        front.superd.toml = front.superd.toml.replace(str(old), str(new))
        front.superd.write()
        assert front.superd.run("reload").returncode == 0
        until(lambda: set(front.superd.workers()).isdisjoint(before), "a new worker")
        old.answer(b"late", source)
        assert known.recv(100) == b"late"
        for client in (known, other):
            new.answer(b"new", asked(client, new))
            assert client.recv(100) == b"new"
