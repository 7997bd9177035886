"""Stopping: connections finish, new ones are refused, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support import proc
from tests.support.clients import connect_many, connect_tcp, connect_unix, receive_to_end
from tests.support.harness import Superd, exchange, is_alive, make_plugin, until
from tests.support.usage import processor_time

CONNECTIONS = 20
IMMEDIATE_STOP_LIMIT = 5.0  # seconds; a drain would take a minute

SERVICES = """
[daemon]
loop = "{loop}"
workers = 2
drain-timeout = "{drain}"

[service.echo]
plugin = "echo"
listen = ["tcp://127.0.0.1:0", "unix://{directory}/echo"]

[service.other]
plugin = "echo"
listen = "udp://127.0.0.1:0"
pool = "other"
"""


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def configuration(directory: Path, loop: str = "auto", drain: str = "60s") -> str:
    toml = SERVICES.replace("{directory}", str(directory))
    return toml.replace("{loop}", loop).replace("{drain}", drain)


def is_served(client: socket.socket) -> bool:
    client.sendall(b"x")
    return client.recv(1) == b"x"


def all_pids(superd: Superd) -> list[int]:
    """Return the pids of the master and its workers."""
    return [superd.pid, *proc.children(superd.pid)]


def is_refused(superd: Superd) -> bool:
    """Return whether a new client is refused."""
    try:
        client = connect_tcp(superd.address("echo"))
    except ConnectionRefusedError:
        return True
    with client:  # connected before the listener was closed
        return False


def assert_nothing_is_left(superd: Superd, pids: list[int]) -> None:
    assert not [pid for pid in pids if is_alive(pid)]
    assert {entry.name for entry in superd.directory.iterdir()} == {"superd.toml", "log"}
    assert is_refused(superd)
    assert "Traceback" not in superd.log()


def test_term_lets_connections_finish_and_refuses_new_ones(
    start_superd: Start, tmp_path: Path, loop: str
) -> None:
    superd = start_superd(configuration(tmp_path / "superd-0", loop))
    pids = all_pids(superd)
    path = superd.directory / "echo"
    with (
        connect_many(superd.address("echo"), CONNECTIONS) as clients,
        connect_unix(path) as neighbour,
    ):
        assert all(is_served(client) for client in (*clients, neighbour))
        superd.signal(signal.SIGTERM)
        until(lambda: is_refused(superd), "the closing of the listeners")
        assert not path.exists()
        assert all(is_served(client) for client in (*clients, neighbour))
        answers = [exchange(client, b"last words") for client in (*clients, neighbour)]
    assert answers == [b"last words"] * (CONNECTIONS + 1)
    assert superd.wait() == 0
    assert_nothing_is_left(superd, pids)


def test_connections_are_cut_at_the_end_of_drain_timeout(
    start_superd: Start, tmp_path: Path, loop: str
) -> None:
    superd = start_superd(configuration(tmp_path / "superd-0", loop, drain="1s"))
    pids = all_pids(superd)
    with connect_many(superd.address("echo"), CONNECTIONS) as clients:
        assert all(is_served(client) for client in clients)
        started = time.monotonic()
        superd.signal(signal.SIGTERM)
        for client in clients:
            assert receive_to_end(client)[0] == b""
        assert time.monotonic() - started >= 0.9
        assert superd.wait() == 0
    cut = sum(int(match) for match in _numbers(superd.log(), "connections cut at the end"))
    assert cut == CONNECTIONS
    assert_nothing_is_left(superd, pids)


def _numbers(log: str, after: str) -> list[str]:
    return [line.partition(after)[0].split()[-1] for line in log.splitlines() if after in line]


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGQUIT,),
    ],
    ids=lambda signals: "-".join(number.name for number in signals),
)
def test_a_second_term_an_int_or_a_quit_stops_immediately(
    start_superd: Start, tmp_path: Path, signals: tuple[signal.Signals, ...]
) -> None:
    superd = start_superd(configuration(tmp_path / "superd-0"))
    pids = all_pids(superd)
    with connect_many(superd.address("echo"), CONNECTIONS) as clients:
        assert all(is_served(client) for client in clients)
        started = time.monotonic()
        superd.signal(signals[0])
        for number in signals[1:]:  # two pending signals of a kind are one (signal(7))
            until(lambda: superd.answer()["state"] == "draining", "the drain")
            superd.signal(number)
        assert superd.wait() == 0
        assert time.monotonic() - started < IMMEDIATE_STOP_LIMIT
        for client in clients:
            assert receive_to_end(client)[0] == b""
    assert_nothing_is_left(superd, pids)


STUCK = """
    import time
    from superd.plugin import Service, hookimpl

    class Stuck(Service):
        name = "stuck"

        async def stream(self, conn):
            await conn.send(b"stuck")
            time.sleep(3600)

    @hookimpl
    def superd_services():
        return [Stuck]
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_worker_with_a_blocked_loop_is_killed_at_the_stop(
    start_superd: Start, tmp_path: Path, number: signal.Signals
) -> None:
    env = make_plugin(tmp_path / "plugins", "stuck", STUCK)
    toml = """
        [daemon]
        drain-timeout = "250ms"

        [service.echo]
        plugin = "stuck"
        listen = "tcp://127.0.0.1:0"
        """
    superd = start_superd(toml, env=env)
    pids = all_pids(superd)
    with superd.connect("echo") as client:
        assert client.recv(5) == b"stuck"
        superd.signal(number)
        assert superd.wait() == 0
    assert_nothing_is_left(superd, pids)


TWO_POOLS = """
    [daemon]
    drain-timeout = "60s"

    [service.one]
    plugin = "echo"
    listen = "tcp://127.0.0.1:0"
    pool = "one"

    [service.two]
    plugin = "echo"
    listen = "tcp://127.0.0.1:0"
    pool = "two"
"""


def test_a_worker_that_is_killed_during_the_drain_is_not_replaced(start_superd: Start) -> None:
    superd = start_superd(TWO_POOLS)
    (victim,), (other,) = superd.workers("one"), superd.workers("two")
    with superd.connect("one") as lost, superd.connect("two") as kept:
        assert is_served(lost)
        assert is_served(kept)
        superd.signal(signal.SIGTERM)
        until(lambda: superd.answer()["state"] == "draining", "the drain")
        os.kill(victim, signal.SIGKILL)
        until(lambda: proc.children(superd.pid) == [other], "the end of the victim")
        before = processor_time(superd.pid)
        assert len([_ for _ in range(100) if is_served(kept)]) == 100
        assert superd.answer()["state"] == "draining"
        assert proc.children(superd.pid) == [other]
        assert processor_time(superd.pid) - before < 0.5, "the master spins"
    assert superd.wait() == 0
    assert "successor" not in superd.log()


FAILS_WITH_MARKER = """
    import os, pathlib
    from superd.plugin import Service, hookimpl

    class Frail(Service):
        name = "frail"

        def prepare(self):
            if pathlib.Path(os.environ["LANG"]).exists():
                raise OSError(5, "no")

        async def stream(self, conn):
            conn.close()

    @hookimpl
    def superd_services():
        return [Frail]
"""


def test_superd_starts_no_worker_while_it_drains(start_superd: Start, tmp_path: Path) -> None:
    env = make_plugin(tmp_path / "plugins", "frail", FAILS_WITH_MARKER)
    env["LANG"] = str(tmp_path / "marker")  # workers keep this variable
    frail = TWO_POOLS.replace('plugin = "echo"', 'plugin = "frail"', 1)
    superd = start_superd(frail, env=env)
    (tmp_path / "marker").touch()
    with superd.connect("two") as client:
        assert is_served(client)
        os.kill(superd.workers("one")[0], signal.SIGKILL)
        superd.wait_for_log("its successor starts in 1 s")
        superd.signal(signal.SIGTERM)
        until(lambda: superd.answer()["state"] == "draining", "the drain")
        (tmp_path / "marker").unlink()  # a start would now succeed
        deadline = time.monotonic() + 1.5
        before = processor_time(superd.pid)
        until(lambda: time.monotonic() > deadline, "the time of the delayed start")
        assert superd.answer()["workers"][0]["pid"] is None
        assert processor_time(superd.pid) - before < 0.5, "the master spins"
        assert is_served(client)
    assert superd.wait() == 0
