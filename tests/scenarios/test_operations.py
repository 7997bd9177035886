"""Reloads, upgrades and killed workers, at random and under load: only the connections of a
killed worker are lost.
"""

from __future__ import annotations

import os
import random
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import connect_tcp, connect_unix
from tests.support.harness import Superd, until
from tests.support.loads import Stream, echo_load, under_load, wait_for_answers
from tests.support.ports import free_ports
from tests.support.proc import children, descriptors, inode_link

# services of three pools: only workers of the first pool are killed
TOML = """
[daemon]
drain-timeout = "10m"
workers = 2

[service.killed]
plugin = "echo"
listen = "tcp://127.0.0.1:{killed}"
pool = "killed"

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
pool = "programs"
options = {{ command = "/bin/cat" }}
"""
OTHER = """
[service.other]
plugin = "daytime"
listen = "tcp://127.0.0.1:{other}"
"""


@pytest.mark.parametrize(
    ("reloads", "upgrades", "kills"),
    [
        (2, 1, 2),
        pytest.param(4, 2, 4, marks=pytest.mark.slow),
        pytest.param(100, 20, 100, marks=pytest.mark.soak),
    ],
)
def test_reloads_upgrades_and_killed_workers_lose_no_other_connection(
    start_superd: Start, tmp_path: Path, reloads: int, upgrades: int, kills: int
) -> None:
    names = ("killed", "kept", "passed", "program", "other")
    port = dict(zip(names, free_ports(len(names)), strict=True))
    first = TOML.format(directory=tmp_path, **port)
    second = first + OTHER.format(**port)
    served = start_superd(first)

    def client(name: str) -> Callable[[], socket.socket]:
        return lambda: connect_tcp(("127.0.0.1", port[name]))

    loads = {name: echo_load(client(name)) for name in ("killed", "kept", "passed", "program")}
    loads["unix"] = echo_load(lambda: connect_unix(tmp_path / "kept"))
    streams = [Stream(client(name)()) for name in ("kept", "kept", "passed", "program")]
    inodes = {name: inode_link(port[name]) for name in port if name != "other"}
    operations = ["reload"] * reloads + ["upgrade"] * upgrades + ["kill"] * kills
    random.Random(reloads).shuffle(operations)
    is_second = False
    victims = 0
    with under_load(*loads.values(), *streams):
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
        wait_for_answers(loads.values(), 3)
    assert [stream.failures for stream in streams] == [[]] * len(streams)
    killed = loads.pop("killed")
    assert {name: load.failures for name, load in loads.items()} == {name: [] for name in loads}
    assert len(killed.failures) <= victims
    assert not any("refused" in failure for failure in killed.failures)
    assert {name: inode_link(port[name]) for name in inodes} == inodes
    assert victims == kills
    assert_nothing_leaked(served)


def kill_a_worker(served: Superd) -> int:
    """Kill a worker of the first pool, and wait for its successor; return how many were killed."""
    before = until(lambda: served.workers("killed"), "a worker to kill")
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(set(served.workers("killed")) - {before[0]}) == 2, "its successor")
    return 1


def assert_nothing_leaked(served: Superd) -> None:
    """Check that no old worker, no zombie and no descriptor is left."""
    current = served.answer()["generation"]

    def is_quiet() -> bool:
        workers = served.answer()["workers"]
        return {worker["generation"] for worker in workers} == {current}

    until(is_quiet, "the old workers to end")
    until(lambda: sorted(children(served.pid)) == sorted(served.workers()), "no other process")
    sockets = [d for d in descriptors(served.pid) if d.target.startswith("socket:")]
    assert len(sockets) < 25
