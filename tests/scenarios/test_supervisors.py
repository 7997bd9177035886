"""superd under a supervisor that speaks the protocol of sd_notify(3)."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import PATIENCE, Superd

TOML = """
[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"

[service.env]
plugin = "exec"
listen = "tcp://127.0.0.1:0"
options = { command = "/usr/bin/env", pass-env = ["NOTIFY_SOCKET", "WATCHDOG_USEC"] }
"""


class Listener:
    """The supervisor's socket: what superd tells, datagram by datagram."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(PATIENCE)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)

    def next(self) -> dict[str, str]:
        lines = self.socket.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def until(self, key: str) -> dict[str, str]:
        """Return the first message that has a key."""
        while key not in (told := self.next()):
            pass
        return told


@pytest.fixture(params=["file", "abstract"])
def supervisor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Listener]]:
    name = f"{tmp_path}/notify" if request.param == "file" else f"@superd-test-{os.getpid()}"
    listener = Listener(name)
    with listener.socket:
        yield name, listener


def started(start_superd: Start, name: str, **env: str) -> Superd:
    return start_superd(TOML, env={"NOTIFY_SOCKET": name, **env})


def test_it_is_told_when_all_serves_and_when_that_ends(
    start_superd: Start, supervisor: tuple[str, Listener]
) -> None:
    name, told = supervisor
    superd = started(start_superd, name)
    first = told.until("READY")
    assert first["READY"] == "1"
    assert int(first["MAINPID"]) == superd.pid
    assert first["STATUS"] == "serving: 2 services, generation 1"
    superd.signal(signal.SIGTERM)
    assert told.until("STOPPING")["STOPPING"] == "1"
    assert superd.wait() == 0


def test_a_reload_is_told_with_the_moment_when_it_began(
    start_superd: Start, supervisor: tuple[str, Listener]
) -> None:
    name, told = supervisor
    superd = started(start_superd, name)
    told.until("READY")
    before = time.monotonic_ns() // 1000
    superd.signal(signal.SIGHUP)
    assert int(told.until("RELOADING")["MONOTONIC_USEC"]) >= before
    assert told.until("READY")["STATUS"] == "serving: 2 services, generation 2"
    superd.file.write_text("[")
    superd.signal(signal.SIGHUP)
    told.until("RELOADING")
    assert "the last reload failed: " in told.until("READY")["STATUS"]


def test_the_watchdog_is_fed_and_more_time_is_asked_for_while_connections_finish(
    start_superd: Start, supervisor: tuple[str, Listener]
) -> None:
    name, told = supervisor
    superd = started(start_superd, name, WATCHDOG_USEC="400000")
    for _ in range(3):
        assert told.until("WATCHDOG") == {"WATCHDOG": "1"}
    with superd.connect("echo") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        superd.signal(signal.SIGTERM)
        for _ in range(2):
            assert int(told.until("EXTEND_TIMEOUT_USEC")["EXTEND_TIMEOUT_USEC"]) > 1_000_000
        told.until("WATCHDOG")
    assert superd.wait() == 0


def test_a_watchdog_for_another_process_is_not_fed(
    start_superd: Start, supervisor: tuple[str, Listener]
) -> None:
    name, told = supervisor
    superd = started(start_superd, name, WATCHDOG_USEC="400000", WATCHDOG_PID="1")
    told.until("READY")
    told.socket.settimeout(1)
    with pytest.raises(TimeoutError):
        told.next()
    assert superd.answer()["state"] == "serving"


def test_no_program_can_speak_for_superd(
    start_superd: Start, supervisor: tuple[str, Listener]
) -> None:
    superd = started(start_superd, supervisor[0], WATCHDOG_USEC="400000")
    with superd.connect("env") as client:
        shown = client.makefile().read()
    assert "PATH=" in shown
    assert "NOTIFY_SOCKET" not in shown
    assert "WATCHDOG" not in shown


def test_nobody_has_to_listen(start_superd: Start, tmp_path: Path) -> None:
    superd = started(start_superd, f"{tmp_path}/nobody")
    assert superd.answer()["state"] == "serving"
