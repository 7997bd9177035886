"""What connections cost in memory: those that do nothing, and those that never read."""

from __future__ import annotations

import gc
import resource
import time

import pytest

from tests.clients import crowd, swallow
from tests.harness import Superd, exchange, until
from tests.usage import private_memory

KIB = 1024

PLUGINS = {
    "relay": """
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
}

TOML = """
[daemon]
loop = "{loop}"

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"

[service.chargen]
plugin = "chargen"
listen = "tcp://127.0.0.1:0"

[service.relay]
plugin = "relay"
listen = "tcp://127.0.0.1:0"
"""


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def settled(pid: int) -> int:
    """Return the memory of a process once it does not change any more."""
    last = [0]

    def same() -> bool:
        before, last[0] = last[0], private_memory(pid)
        time.sleep(0.1)
        return before == last[0]

    until(same, "the memory to settle")
    return last[0]


def warm_up(served: Superd, service: str) -> None:
    """Have the worker meet as many clients as it may, so that its memory is not new any more."""
    with crowd(served.address(service), 50) as clients:
        for client in clients:
            swallow(client, 100_000)


def stall(served: Superd, service: str, readers: int) -> float:
    """Return the bytes of memory that a client costs which sends, and never reads."""
    (worker,) = served.workers()
    warm_up(served, service)
    until(lambda: served.counts(service)["active"] == 0, "the first clients to go")
    before = settled(worker)
    with crowd(served.address(service), readers) as clients:
        sending = set(clients) if service != "chargen" else set()
        while sending:
            sending = {client for client in sending if swallow(client, 1 << 20)}
        each = (settled(worker) - before) / readers
    until(lambda: served.counts(service)["active"] == 0, "them to go")
    print(f"{service}: {readers} stalled readers cost {each / KIB:.1f} KiB each")
    return each


@pytest.mark.root
@pytest.mark.parametrize("service", ["echo", "chargen", "relay"])
def test_a_reader_that_stalls_costs_little(served: Superd, service: str) -> None:
    assert stall(served, service, 100) < 128 * KIB
    assert exchange(served.connect("echo"), b"still well") == b"still well"
