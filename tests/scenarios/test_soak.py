"""Endurance: every feature under load for minutes; memory and descriptors must not grow."""

from __future__ import annotations

import itertools
import os
import pwd
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import connect_tcp, connect_unix, receive_and_close
from tests.support.harness import Superd, ask_udp, exchange, make_plugin, until
from tests.support.loads import Load, echo_load, under_load
from tests.support.ports import free_ports
from tests.support.proc import children, memory, zombies

WARM_UP_SECONDS = 60.0  # before the first measurement of memory
STEADY_SECONDS = 240.0  # without a reload or an upgrade, in which workers must not grow
CHANGES_SECONDS = 300.0  # with a change every CHANGE_INTERVAL_SECONDS
CHANGE_INTERVAL_SECONDS = 5.0
MAX_GROWTH = 1.05
SLACK_KB = 2048

TOML = """
[daemon]
workers = 2
drain-timeout = "20s"
log = "{directory}/log"
record-log = "{directory}/records"

[defaults]
max-per-source = 500
allow = ["127.0.0.0/8", ".localdomain", "user:{user}"]

[service.echo]
plugin = "echo"
listen = ["tcp://127.0.0.1:{echo}", "udp://127.0.0.1:{echo}", "unix://{directory}/echo"]

[service.thread]
plugin = "upper"
listen = "tcp://127.0.0.1:{thread}"
model = "thread"

[service.fork]
plugin = "upper"
listen = "tcp://127.0.0.1:{fork}"
model = "fork"

[service.prefork]
plugin = "upper"
listen = "tcp://127.0.0.1:{prefork}"
model = "prefork"
max-requests = 50

[service.cat]
plugin = "exec"
listen = "tcp://127.0.0.1:{cat}"
chroot = ""
options = {{ command = "/bin/cat" }}

[service.passed]
plugin = "forward"
listen = "tcp://127.0.0.1:{passed}"
options = {{ to = "tcp://localhost:{echo}" }}

[service.mux]
plugin = "tcpmux"
listen = "tcp://127.0.0.1:{mux}"

[service.by-name]
plugin = "echo"
listen = "tcpmux://echo"

[service.knocks]
plugin = "sniffer"
listen = "tcp://127.0.0.1:{knocks}"
options = {{ capture = {{ bytes = 100, time = "100ms" }}, output = "{directory}/knocks" }}

[service.day]
plugin = "daytime"
listen = ["tcp://127.0.0.1:{day}", "udp://127.0.0.1:{day}"]
amplify = true
"""
UPPER = """
    from superd.plugin import Service, hookimpl

    class Upper(Service):
        name = "upper"

        def stream(self, conn):
            for line in conn:
                conn.send(line.upper())

    @hookimpl
    def superd_services():
        return [Upper]
    """
NAMES = (
    "echo", "thread", "fork", "prefork", "cat", "passed", "mux", "knocks", "day",
)  # fmt: skip


def loads(port: dict[str, int], directory: Path) -> list[Load]:
    """Return clients of every service."""

    def client(name: str) -> Callable[[], socket.socket]:
        return lambda: connect_tcp(("127.0.0.1", port[name]))

    def shouted(name: str) -> Load:
        return Load(lambda: exchange(client(name)(), b"hello\n"), b"HELLO\n".__eq__)

    def is_day(answer: bytes) -> bool:
        return len(answer) == 26

    echo, day = ("127.0.0.1", port["echo"]), ("127.0.0.1", port["day"])
    return [
        *(echo_load(client(name)) for name in ("echo", "cat", "passed")),
        echo_load(lambda: connect_unix(directory / "echo")),
        *(shouted(name) for name in ("thread", "fork", "prefork")),
        Load(lambda: exchange(client("mux")(), b"echo\r\nhello"), b"+Go\r\nhello".__eq__),
        Load(lambda: exchange(client("knocks")(), b"GET / HTTP/1.0\r\n\r\n"), b"".__eq__),
        Load(lambda: receive_and_close(client("day")()), is_day),
        Load(lambda: ask_udp(day, b""), is_day),
        Load(lambda: ask_udp(echo, b"hello")),
    ]


def sizes(served: Superd) -> dict[int, int]:
    """Return the memory of the master and of all its children, in kB."""
    return {pid: memory(pid) for pid in (served.pid, *children(served.pid))}


def settled(served: Superd) -> dict[str, int]:
    """Wait until no worker drains; return the numbers of processes, zombies and descriptors."""

    def is_quiet() -> bool:
        now = served.answer()
        return {one["generation"] for one in now["workers"]} == {now["generation"]} and all(
            one["state"] == "ready" for one in now["workers"]
        )

    until(is_quiet, "the old workers to end", 60)
    return {
        "processes": len(children(served.pid)),
        "zombies": len(zombies(served.pid)),
        "descriptors": served.open_descriptors(),
    }


@pytest.mark.soak
def test_memory_processes_and_descriptors_do_not_grow(start_superd: Start, tmp_path: Path) -> None:
    port = dict(zip(NAMES, free_ports(len(NAMES)), strict=True))
    served = start_superd(
        TOML.format(directory=tmp_path, user=pwd.getpwuid(os.getuid()).pw_name, **port),
        env=make_plugin(tmp_path / "p", "upper", UPPER),
    )
    clients = loads(port, tmp_path)
    pause = threading.Event()
    with under_load(*clients):
        # All compared processes come from an upgrade.
        assert served.run("upgrade").returncode == 0
        pause.wait(WARM_UP_SECONDS)
        before, open_before = sizes(served), settled(served)
        pause.wait(STEADY_SECONDS)
        after = sizes(served)
        grown = {
            pid: (before[pid], size)
            for pid, size in after.items()
            if pid in before and size > before[pid] * MAX_GROWTH + SLACK_KB
        }
        assert grown == {}
        assert len(before.keys() & after.keys()) >= len(served.workers()) + 1
        end = time.monotonic() + CHANGES_SECONDS
        for change in itertools.cycle(["reload", "kill", "reload", "upgrade"]):
            if time.monotonic() > end:
                break
            if change == "kill":
                os.kill(served.workers()[0], signal.SIGKILL)
            else:
                done = served.run(change)
                assert (done.returncode, done.stderr) == (0, "")
            pause.wait(CHANGE_INTERVAL_SECONDS)
        assert settled(served) == open_before
        assert memory(served.pid) < before[served.pid] * MAX_GROWTH + SLACK_KB
    failures = [failure for client in clients for failure in client.failures]
    print(f"{sum(client.served for client in clients)} served, {failures}")
    kills = served.log().count("SIGKILL") + (tmp_path / "log").read_text().count("SIGKILL")
    # Each killed worker loses at most one connection of each load.
    assert len(failures) <= kills * len(clients)
    assert "Traceback" not in (tmp_path / "log").read_text()
