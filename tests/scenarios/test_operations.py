"""Reloads, upgrades and workers that die, at random and under load: nobody pays for them but who
was connected to a worker that died.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.clients import connect_tcp, connect_unix
from tests.conftest import Start
from tests.daemons import free_ports
from tests.harness import PATIENCE, Superd, exchange, until
from tests.proc import children, descriptors, listener

CHUNK = 4096

# services of three pools: the workers of the first are killed, those of the others are not
TOML = """
[daemon]
drain-timeout = "10m"
workers = 2

[service.killed]
plugin = "echo"
listen = "tcp://127.0.0.1:{killed}"
user = "daemon"

[service.kept]
plugin = "echo"
listen = ["tcp://127.0.0.1:{kept}", "unix://{directory}/kept"]

[service.passed]
plugin = "forward"
listen = "tcp://127.0.0.1:{passed}"
options = {{ to = "tcp://127.0.0.1:{kept}" }}

[service.program]
plugin = "exec"
listen = "tcp://127.0.0.1:{program}"
chroot = ""
user = "games"
options = {{ command = "/bin/cat" }}
"""
OTHER = """
[service.other]
plugin = "daytime"
listen = "tcp://127.0.0.1:{other}"
"""


@dataclass
class Load:
    """Clients that come, are served and go, one after the other; what they met with."""

    connect: Callable[[], socket.socket]
    served: int = 0
    failures: list[str] = field(default_factory=list)

    def run(self, over: threading.Event) -> None:
        while not over.is_set():
            try:
                answer = exchange(self.connect(), b"hello")
                if answer != b"hello":
                    self.failures.append(f"cut short: {answer!r}")
            except OSError as error:
                self.failures.append(str(error))
            self.served += 1
            over.wait(0.005)


@dataclass
class Stream:
    """One long conversation: numbered chunks, each echoed before the next is sent."""

    connection: socket.socket
    sent: int = 0
    failures: list[str] = field(default_factory=list)

    def run(self, over: threading.Event) -> None:
        try:
            with self.connection:
                while not over.is_set():
                    chunk = self.sent.to_bytes(8, "big") * (CHUNK // 8)
                    self.connection.sendall(chunk)
                    found = b""
                    while len(found) < CHUNK and (part := self.connection.recv(CHUNK)):
                        found += part
                    assert found == chunk
                    self.sent += 1
                    over.wait(0.02)
        except (OSError, AssertionError) as error:
            self.failures.append(f"after {self.sent} chunks: {error!r}")


@contextmanager
def under(*loads: Load | Stream) -> Iterator[None]:
    """Run loads until the end of the block."""
    over = threading.Event()
    threads = [threading.Thread(target=load.run, args=(over,)) for load in loads]
    with ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join, PATIENCE)
        stack.callback(over.set)
        yield


@pytest.mark.parametrize(
    ("reloads", "upgrades", "kills"),
    [(4, 2, 4), pytest.param(100, 20, 100, marks=pytest.mark.soak)],
)
def test_nobody_is_lost(
    start_superd: Start, tmp_path: Path, reloads: int, upgrades: int, kills: int
) -> None:
    names = ("killed", "kept", "passed", "program", "other")
    port = dict(zip(names, free_ports(len(names)), strict=True))
    first = TOML.format(directory=tmp_path, **port)
    second = first + OTHER.format(**port)
    served = start_superd(first)

    def client(name: str) -> Callable[[], socket.socket]:
        return lambda: connect_tcp(("127.0.0.1", port[name]))

    loads = {name: Load(client(name)) for name in ("killed", "kept", "passed", "program")}
    loads["unix"] = Load(lambda: connect_unix(tmp_path / "kept"))
    streams = [Stream(client(name)()) for name in ("kept", "kept", "passed", "program")]
    inodes = {name: listener(port[name]) for name in port if name != "other"}
    operations = ["reload"] * reloads + ["upgrade"] * upgrades + ["kill"] * kills
    random.Random(reloads).shuffle(operations)
    is_second = False
    victims = 0
    with under(*loads.values(), *streams):
        for operation in operations:
            if operation == "reload":
                is_second = not is_second
                served.toml = second if is_second else first
                served.write()
            if operation == "kill":
                victims += kill_a_worker(served)
                continue
            done = served.run(operation)
            assert (done.returncode, done.stderr) == (0, ""), served.log()
        for load in loads.values():
            number = load.served
            until(lambda load=load, number=number: load.served > number + 2, "some more answers")  # type: ignore[misc]
    assert [stream.failures for stream in streams] == [[]] * len(streams)
    killed = loads.pop("killed")
    assert {name: load.failures for name, load in loads.items()} == {name: [] for name in loads}
    assert len(killed.failures) <= victims
    assert not any("refused" in failure for failure in killed.failures)
    assert {name: listener(port[name]) for name in inodes} == inodes
    assert victims == kills
    left_alone(served)


def kill_a_worker(served: Superd) -> int:
    """Kill a worker of the first pool, and wait for its successor; return how many were killed."""
    before = until(lambda: served.workers("daemon"), "a worker to kill")
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(set(served.workers("daemon")) - {before[0]}) == 2, "its successor")
    return 1


def left_alone(served: Superd) -> None:
    """Check that nothing is left of what has been: workers, zombies, descriptors."""
    current = served.answer()["generation"]

    def is_quiet() -> bool:
        workers = served.answer()["workers"]
        return {worker["generation"] for worker in workers} == {current}

    until(is_quiet, "the old workers to end")
    until(lambda: sorted(children(served.pid)) == sorted(served.workers()), "no other process")
    sockets = [d for d in descriptors(served.pid) if d.target.startswith("socket:")]
    assert len(sockets) < 25
