"""Thousands of ports in one entry, up to the limit of descriptors."""

from __future__ import annotations

import contextlib
import pickle
import random
import resource
import socket
import threading
import time
from dataclasses import replace
from typing import cast

import pytest

from superd.config.model import Service
from superd.listen.adopting import adopt
from superd.listen.listener import Listener
from superd.net.addresses import Address, Transport
from tests.conftest import Start
from tests.plugins.sniffer.knocking import lines
from tests.plugins.sniffer.test_ranges import echo, is_echo, reload, sniffer
from tests.support.harness import ask_udp
from tests.support.ports import OWN_PORT, own_host
from tests.support.proc import children, memory

pytestmark = pytest.mark.slow

LOW = OWN_PORT
HOST = own_host()
ECHO = LOW + 5
SPARE_DESCRIPTORS = 500  # for everything but listeners


def thousands(number: int) -> str:
    wide = sniffer(f'"tcp://{HOST}:{LOW}-{LOW + number - 1}"') + 'record = ["noted"]\n'
    real = echo(f'"tcp://{HOST}:{ECHO}", "udp://{HOST}:{ECHO}"')
    large = wide.replace("{ capture", '{ file-size = "1GiB", capture')
    return f"[daemon]\nworkers = 2\n{large}{real}"


class FakeSocket:
    """A socket with a descriptor, which is all that adopting needs."""

    def fileno(self) -> int:
        return 0


def test_adopting_thousands_of_addresses_is_fast() -> None:
    """Addresses are not compared pairwise, nor the entry, which has all of them, for each."""
    addresses = tuple(Address(Transport.TCP, HOST, port) for port in range(1, 5001))
    before, after = (
        Service.model_construct(plugin="echo", listen=pickle.loads(pickle.dumps(addresses)))
        for _ in range(2)
    )
    old = [
        Listener("echo", before, one, one, cast("socket.socket", FakeSocket())) for one in addresses
    ]
    new = [replace(listener, entry=after) for listener in old]
    began = time.monotonic()
    assert adopt(new[:-1], old) == old[-1:]
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("number", [2_500, pytest.param(15_000, marks=pytest.mark.soak)])
def test_thousands_of_ports_are_served(start: Start, number: int) -> None:
    if number + SPARE_DESCRIPTORS > resource.getrlimit(resource.RLIMIT_NOFILE)[1]:
        pytest.skip("the limit of descriptors is too low")
    toml = thousands(number)
    began = time.monotonic()
    served = start(toml)
    assert time.monotonic() - began < 15
    assert memory(served.pid) < 200_000  # kB
    assert all(memory(pid) < 250_000 for pid in children(served.pid))
    assert len(served.status()["services"][0]["listen"]) == number - 1

    slowest = 0.0
    is_over = threading.Event()

    def poll() -> None:
        nonlocal slowest
        while not is_over.wait(0.1):
            began = time.monotonic()
            served.answer()
            slowest = max(slowest, time.monotonic() - began)

    poller = threading.Thread(target=poll)
    poller.start()
    try:
        began = time.monotonic()
        more = toml + echo(f'"tcp://{HOST}:{ECHO + 1}"', "other")
        assert "other: added" in reload(served, more)
        assert is_echo(ECHO + 1, HOST)
        assert "other: removed" in reload(served, toml)
        assert time.monotonic() - began < 30
    finally:
        is_over.set()
        poller.join()
    assert slowest < 2, "seconds of the slowest answer of the master"

    ports = [port for port in range(LOW, LOW + number) if port != ECHO]
    random.Random(1).shuffle(ports)
    echoed = threading.Semaphore(0)
    scanned = threading.Event()

    def talk() -> None:
        while not scanned.is_set():
            assert is_echo(ECHO, HOST)
            assert ask_udp((HOST, ECHO), b"datagram") == b"datagram"
            echoed.release()

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        for n, port in enumerate(ports):
            if n % (number // 10) == 0:
                assert echoed.acquire(timeout=15), (
                    "the other service does not answer during the scan"
                )
            with (
                contextlib.suppress(ConnectionError),
                socket.create_connection((HOST, port), 15),
            ):
                pass
    finally:
        scanned.set()
        talker.join()
    found = lines(served.directory / "sniffer.out", len(ports), 30)
    assert sorted(line["port"] for line in found) == sorted(ports)
    assert "Traceback" not in served.log()
