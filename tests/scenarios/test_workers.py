"""Workers that are killed, that cannot start, and that try to harm the master."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support import proc
from tests.support.clients import connect_and_receive, connect_unix
from tests.support.harness import EVENT_TIMEOUT, Address, Superd, exchange, make_plugin, until
from tests.support.usage import processor_time

TWO_POOLS = """
[daemon]
loop = "{loop}"

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"

[service.other]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
pool = "other"
"""


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Load:
    """Clients in several threads that connect, echo and close without a pause.

    `refused` counts refused connections, `broken` connections that ended without an answer,
    `served` the answered ones.
    """

    def __init__(self, address: Address, threads: int = 4) -> None:
        self.address = address
        self.served = self.refused = self.broken = 0
        self.count = threading.Lock()
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        until(lambda: self.served, "the first answer")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(EVENT_TIMEOUT)

    def _run(self) -> None:
        while not self.stop.is_set():
            result = self._exchange()
            with self.count:
                setattr(self, result, getattr(self, result) + 1)

    def _exchange(self) -> str:
        try:
            client = socket.create_connection(self.address, timeout=EVENT_TIMEOUT)
        except OSError:
            return "refused"
        try:
            return "served" if exchange(client, b"hello") == b"hello" else "broken"
        except OSError:
            return "broken"


def successor(superd: Superd, victim: int, pool: str) -> int:
    """Wait for the worker that replaces the victim; return its pid."""
    found = until(lambda: [pid for pid in superd.workers(pool) if pid != victim], "a successor")
    return found[0]


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.soak)])
def test_a_killed_worker_is_replaced_without_a_refused_connection(
    start_superd: Start, loop: str, kills: int
) -> None:
    superd = start_superd(TWO_POOLS.replace("{loop}", loop))
    pool = superd.answer()["services"][0]["pool"]
    listener = proc.inode_link(superd.address("echo")[1])
    (worker,) = superd.workers(pool)
    longest = 0.0
    with superd.connect("other") as neighbour, Load(superd.address("echo")) as load:
        for _ in range(kills):
            before = load.served
            os.kill(worker, signal.SIGKILL)
            killed_at = time.monotonic()
            worker = successor(superd, worker, pool)
            longest = max(longest, time.monotonic() - killed_at)
            until(lambda before=before: load.served > before, "an answer")  # type: ignore[misc]
        neighbour.sendall(b"still here")
        assert neighbour.recv(100) == b"still here"
    assert load.refused == 0
    assert load.served > kills
    # Each client loses at most its connection in flight.
    assert load.broken <= kills * len(load.threads)
    assert longest < EVENT_TIMEOUT
    assert proc.inode_link(superd.address("echo")[1]) == listener
    assert not proc.zombies(superd.pid)
    print(f"{kills} kills: {load.served} served, {load.broken} broken, {longest:.2f} s at most")


def test_all_workers_are_replaced_when_all_are_killed_at_the_same_time(start_superd: Start) -> None:
    superd = start_superd(TWO_POOLS.replace("{loop}", 'auto"\nworkers = 4\nlog-format = "text'))
    victims = set(superd.workers())
    assert len(victims) == 8
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(set(superd.workers()) - victims) == 8, "eight other workers")
    assert not proc.zombies(superd.pid)
    assert set(proc.children(superd.pid)) == set(superd.workers())


def test_a_worker_is_replaced_after_a_signal_without_a_name(start_superd: Start) -> None:
    superd = start_superd(TWO_POOLS.replace("{loop}", "auto"))
    (victim,) = superd.workers("other")
    os.kill(victim, 40)
    successor(superd, victim, "other")
    assert "was ended by signal 40; its successor starts now" in superd.log()


FRAIL = """
    import os, pathlib, time
    from superd.plugin import Service, hookimpl

    class Frail(Service):
        name = "frail"

        def prepare(self):
            marker = pathlib.Path(os.environ.get("LANG", "unset"))
            if marker.exists():
                {act}

        async def stream(self, conn):
            await conn.send(await conn.readline())

    @hookimpl
    def superd_services():
        return [Frail]
"""


def with_frail(start_superd: Start, directory: Path, act: str) -> tuple[Superd, Path]:
    """Start a plugin that fails at its start once a file exists, beside one that never fails."""
    env = make_plugin(directory / "plugins", "frail", FRAIL.replace("{act}", act))
    marker = directory / "marker"
    env["LANG"] = str(marker)  # workers keep this variable
    toml = TWO_POOLS.replace("{loop}", "auto").replace('plugin = "echo"', 'plugin = "frail"', 1)
    return start_superd(toml.replace("service.echo", "service.frail"), env=env), marker


def test_a_worker_that_fails_at_every_start_is_throttled_and_reported(
    start_superd: Start, tmp_path: Path
) -> None:
    superd, marker = with_frail(start_superd, tmp_path, "os.kill(os.getpid(), 11)")
    pool = superd.answer()["services"][0]["pool"]
    (victim,) = superd.workers(pool)
    with Load(superd.address("other"), threads=1) as load:
        marker.touch()
        os.kill(victim, signal.SIGKILL)
        superd.wait_for_log(r"was ended by SIGSEGV; its successor starts in 1 s")
        superd.wait_for_log(r"was ended by SIGSEGV; its successor starts in 2 s")
        assert superd.log().count("successor starts") == 3
        states = {worker["pool"]: worker["state"] for worker in superd.answer()["workers"]}
        assert states == {pool: "throttled", "other": "ready"}
        pending = socket.create_connection(superd.address("frail"), timeout=EVENT_TIMEOUT)
        marker.unlink()
        assert exchange(pending, b"patience\n") == b"patience\n"
    assert (load.refused, load.broken) == (0, 0)
    assert load.served > 10


def test_the_log_says_why_a_worker_cannot_start(start_superd: Start, tmp_path: Path) -> None:
    superd, marker = with_frail(start_superd, tmp_path, "raise OSError(28, 'no room')")
    marker.touch()
    os.kill(superd.workers()[0], signal.SIGKILL)
    superd.wait_for_log(
        "ended with code 1: service.frail: plugin frail failed in prepare: no room"
        r" \(\S+/superd_frail\.py:\d+\); its successor starts in 1 s"
    )


@pytest.mark.soak
def test_a_worker_that_is_not_ready_within_30_seconds_is_killed(
    start_superd: Start, tmp_path: Path
) -> None:
    superd, marker = with_frail(start_superd, tmp_path, "time.sleep(3600)")
    marker.touch()
    os.kill(superd.workers()[0], signal.SIGKILL)
    superd.wait_for_log(
        "was ended by SIGKILL: it was not ready within 30 s; its successor starts in 1 s", 60
    )
    marker.unlink()
    with superd.connect("frail") as client:
        client.settimeout(60)
        assert exchange(client, b"patience\n") == b"patience\n"


def test_a_master_that_cannot_fork_keeps_running_and_retries(start_superd: Start) -> None:
    superd = start_superd(TWO_POOLS.replace("{loop}", "auto"))
    (victim,) = superd.workers("other")
    soft, hard = resource.prlimit(superd.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(superd.pid, resource.RLIMIT_NOFILE, (3, hard))
    os.kill(victim, signal.SIGKILL)
    with connect_unix(superd.directory / "control") as asking:  # no descriptor is free to accept it
        before = processor_time(superd.pid)
        asking.sendall(b"status\n")
        superd.wait_for_log("its successor starts in 2 s")
        assert processor_time(superd.pid) - before < 0.5, "the master spins"
    superd.wait_for_log(
        "cannot start a worker of pool other: Too many open files; its successor starts in 1 s"
    )
    resource.prlimit(superd.pid, resource.RLIMIT_NOFILE, (soft, hard))
    successor(superd, victim, "other")
    assert exchange(superd.connect("other"), b"hello") == b"hello"


def test_a_worker_survives_an_exception_with_a_very_long_text(
    start_superd: Start, tmp_path: Path
) -> None:
    source = FRAIL.replace("{act}", "pass").replace(
        "await conn.send(await conn.readline())",
        "raise ValueError(chr(0xFF21) * 1_000_000)",
    )
    env = make_plugin(tmp_path / "plugins", "frail", source)
    toml = TWO_POOLS.replace("{loop}", "auto").replace('plugin = "echo"', 'plugin = "frail"', 1)
    superd = start_superd(toml, env=env)
    before = superd.workers()
    assert connect_and_receive(superd.address("echo")) == (b"", "reset")
    superd.wait_for_log("plugin frail failed")
    assert max(map(len, superd.log().splitlines())) < 3000
    assert superd.workers() == before
