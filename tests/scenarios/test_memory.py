"""The memory of idle connections, and of clients that never read."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
import superd_chargen

from tests.conftest import Start
from tests.support.clients import connect_many, send_until_blocked
from tests.support.harness import Superd, exchange, make_plugin
from tests.support.usage import private_memory

KIB = 1024

RELAY = """
    from superd.plugin import Service, hookimpl

    class Relay(Service):
        name = "relay"

        async def stream(self, conn):
            while data := await conn.read():
                await conn.send(data)

    @hookimpl
    def superd_services():
        return [Relay]
"""

# The most bytes for a stalled reader: one buffer that was read and is not sent yet. A coroutine has
# another buffer that it has not read yet.
MAX_BYTES = {"echo": 80 * KIB, "chargen": 8 * KIB, "relay": 160 * KIB}
# asyncio copies the part of a chunk that the kernel has not taken; uvloop refers to it.
MAX_COPIED_BYTES = {("chargen", "asyncio"): len(superd_chargen.CHUNK)}


def start(start_superd: Start, directory: Path, service: str, loop: str) -> Superd:
    return start_superd(
        f"""
        [daemon]
        loop = "{loop}"

        [service.{service}]
        plugin = "{service}"
        listen = "tcp://127.0.0.1:0"
        """,
        env=make_plugin(directory / "plugins", "relay", RELAY),
    )


def settled_memory(pid: int) -> int:
    """Wait until the memory of a process is constant, and return it."""
    last = 0
    for _ in range(100):
        before, last = last, private_memory(pid)
        if before == last:
            return last
        time.sleep(0.1)
    raise AssertionError(f"the memory of process {pid} keeps changing")


def memory_of_stalled_reader(served: Superd, service: str, readers: int) -> float:
    """Return the bytes of memory for each client that sends and never reads."""
    (worker,) = served.workers()
    with served.connect(service) as client:
        client.sendall(b"x")
        client.recv(1)
    before = settled_memory(worker)
    with connect_many(served.address(service), readers) as clients:
        sending = set(clients) if service != "chargen" else set()
        while sending:
            sending = {client for client in sending if send_until_blocked(client, 1 << 20)}
        each = (settled_memory(worker) - before) / readers
    served.wait_until_idle(service)
    print(f"{service}: {readers} stalled readers cost {each / KIB:.1f} KiB each")
    return each


@pytest.mark.root
@pytest.mark.parametrize("service", MAX_BYTES)
def test_a_stalled_reader_uses_little_memory(
    start_superd: Start, tmp_path: Path, service: str
) -> None:
    served = start(start_superd, tmp_path, service, "auto")
    assert memory_of_stalled_reader(served, service, 500) < MAX_BYTES[service]


@pytest.mark.root
@pytest.mark.soak
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("service", MAX_BYTES)
def test_a_thousand_stalled_readers_use_little_memory(
    start_superd: Start, tmp_path: Path, service: str, loop: str
) -> None:
    served = start(start_superd, tmp_path, service, loop)
    limit = MAX_BYTES[service] + MAX_COPIED_BYTES.get((service, loop), 0)
    assert memory_of_stalled_reader(served, service, 1000) < limit


def memory_of_idle_connection(served: Superd, connections: int) -> float:
    """Return the bytes of memory for each connection that has echoed once and is idle."""
    (worker,) = served.workers()
    assert exchange(served.connect("echo"), b"first") == b"first"
    before = settled_memory(worker)
    with connect_many(served.address("echo"), connections) as clients:
        for client in clients:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
        each = (settled_memory(worker) - before) / connections
        began = time.monotonic()
        assert exchange(served.connect("echo"), b"and I?") == b"and I?"
        delay = time.monotonic() - began
    print(f"{connections} idle cost {each:.0f} bytes each; a new client waited {delay:.4f} s")
    assert delay < 1  # 1 ms on an idle machine
    return each


@pytest.mark.root
def test_an_idle_connection_uses_little_memory(start_superd: Start, tmp_path: Path) -> None:
    assert memory_of_idle_connection(start(start_superd, tmp_path, "echo", "auto"), 1000) <= 4 * KIB


@pytest.mark.root
@pytest.mark.soak
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_ten_thousand_idle_connections_use_little_memory(
    start_superd: Start, tmp_path: Path, loop: str
) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most < 11_000:
        pytest.skip(f"a process may have {most} files open, and this needs 11,000")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    assert memory_of_idle_connection(start(start_superd, tmp_path, "echo", loop), 10_000) <= 4 * KIB
