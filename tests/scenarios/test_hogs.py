"""A plugin that keeps its worker busy, or forks without end, affects only its own pool."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import connect_many
from tests.support.harness import Superd, exchange, make_plugin

BUSY = f"superd-hog-{os.getpid()}"  # the hogs run while a socket of this name is bound
MAX_PROCESSES = 40

PLUGIN = f"""
    import asyncio, os, socket, time
    from superd.plugin import Service, hookimpl

    def busy():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            return probe.connect_ex("\\0{BUSY}") == 0

    class Hog(Service):
        name = "hog"

        async def stream(self, conn):
            act = (await conn.readline()).decode().strip()
            await conn.send(b"here goes\\n")
            await asyncio.sleep(0)
            await getattr(self, act)()

        async def block(self):
            while busy():
                time.sleep(0.01)

        async def spin(self):
            while busy():
                pass

        async def flood(self):
            loop = asyncio.get_running_loop()
            while busy():
                loop.call_soon(int, "no number")
                await asyncio.sleep(0)

        async def breed(self):
            while busy():
                try:
                    pid = os.fork()
                except OSError:
                    time.sleep(0.01)
                    continue
                if pid == 0:
                    while busy():
                        time.sleep(0.01)
                    os._exit(0)

    @hookimpl
    def superd_services():
        return [Hog]
"""

TOML = f"""
[service.hog]
plugin = "hog"
listen = "tcp://127.0.0.1:0"
pool = "hogs"
rlimits = {{ nproc = {MAX_PROCESSES} }}

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
"""


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Keep the hogs running."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flag:
        flag.bind(f"\0{BUSY}")
        yield


@pytest.mark.parametrize(
    "act",
    ["block", "spin", "flood", pytest.param("breed", marks=pytest.mark.root)],
)
def test_a_hog_affects_only_its_own_pool(start_superd: Start, tmp_path: Path, act: str) -> None:
    served = start_superd(TOML, env=make_plugin(tmp_path / "plugins", "hog", PLUGIN))
    with served.connect("hog") as hog:
        with busy(), connect_many(served.address("echo"), 20) as sessions:
            hog.sendall(act.encode() + b"\n")
            assert hog.recv(100) == b"here goes\n"
            for client in sessions * 10:
                client.sendall(b"still there?")
                assert client.recv(100) == b"still there?"
            assert exchange(served.connect("echo"), b"and new ones?") == b"and new ones?"
            assert served.answer()["services"]  # the master answers, too
        assert hog.recv(100) == b""
    assert exchange_line(served, "spin") == b"here goes\n"
    assert served.log().count("\n") < 30


def exchange_line(served: Superd, act: str) -> bytes:
    """Start a hog that ends immediately, and return its first line."""
    return exchange(served.connect("hog"), act.encode() + b"\n")
