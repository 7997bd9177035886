"""superd under a supervisor that speaks the protocol of sd_notify(3)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.harness import Superd
from tests.support.passing import NotifySocket

TOML = """
[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"

[service.env]
plugin = "exec"
listen = "tcp://127.0.0.1:0"
options = { command = "/usr/bin/env", pass-env = ["NOTIFY_SOCKET", "WATCHDOG_USEC"] }
"""


@pytest.fixture(params=["file", "abstract"])
def supervisor(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[str, NotifySocket]]:
    name = f"{tmp_path}/notify" if request.param == "file" else f"@superd-test-{os.getpid()}"
    listener = NotifySocket(name)
    yield name, listener
    listener.close()


def started(start_superd: Start, name: str, **env: str) -> Superd:
    return start_superd(TOML, env={"NOTIFY_SOCKET": name, **env})


def test_it_is_told_when_all_serves_and_when_that_ends(
    start_superd: Start, supervisor: tuple[str, NotifySocket]
) -> None:
    name, told = supervisor
    superd = started(start_superd, name)
    first = told.wait_for("READY")
    assert first["READY"] == "1"
    assert int(first["MAINPID"]) == superd.pid
    assert first["STATUS"] == "serving: 2 services, generation 1"
    superd.signal(signal.SIGTERM)
    assert told.wait_for("STOPPING")["STOPPING"] == "1"
    assert superd.wait() == 0


def test_a_reload_is_told_with_the_moment_when_it_began(
    start_superd: Start, supervisor: tuple[str, NotifySocket]
) -> None:
    name, told = supervisor
    superd = started(start_superd, name)
    told.wait_for("READY")
    before = time.monotonic_ns() // 1000
    superd.signal(signal.SIGHUP)
    assert int(told.wait_for("RELOADING")["MONOTONIC_USEC"]) >= before
    assert told.wait_for("READY")["STATUS"] == "serving: 2 services, generation 2"
    superd.file.write_text("[")
    superd.signal(signal.SIGHUP)
    told.wait_for("RELOADING")
    assert "the last reload failed: " in told.wait_for("READY")["STATUS"]


def test_the_watchdog_is_fed_and_more_time_is_asked_for_while_connections_finish(
    start_superd: Start, supervisor: tuple[str, NotifySocket]
) -> None:
    name, told = supervisor
    superd = started(start_superd, name, WATCHDOG_USEC="400000")
    for _ in range(3):
        assert told.wait_for("WATCHDOG") == {"WATCHDOG": "1"}
    with superd.connect("echo") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        superd.signal(signal.SIGTERM)
        for _ in range(2):
            assert int(told.wait_for("EXTEND_TIMEOUT_USEC")["EXTEND_TIMEOUT_USEC"]) > 1_000_000
        told.wait_for("WATCHDOG")
    assert superd.wait() == 0


def test_a_watchdog_for_another_process_is_not_fed(
    start_superd: Start, supervisor: tuple[str, NotifySocket]
) -> None:
    name, told = supervisor
    superd = started(start_superd, name, WATCHDOG_USEC="400000", WATCHDOG_PID="1")
    told.wait_for("READY")
    superd.signal(signal.SIGTERM)
    told.wait_for("STOPPING")
    told.receive_pending()
    assert not [message for message in told.messages if "WATCHDOG" in message]


def test_no_program_can_speak_for_superd(
    start_superd: Start, supervisor: tuple[str, NotifySocket]
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
