"""superd under a service manager that uses the protocol of sd_notify(3)."""

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


def start_notifying(start_superd: Start, name: str, **env: str) -> Superd:
    return start_superd(TOML, env={"NOTIFY_SOCKET": name, **env})


def test_the_service_manager_is_notified_when_superd_is_ready_and_when_it_stops(
    start_superd: Start, supervisor: tuple[str, NotifySocket]
) -> None:
    name, manager = supervisor
    superd = start_notifying(start_superd, name)
    first = manager.wait_for("READY")
    assert first["READY"] == "1"
    assert int(first["MAINPID"]) == superd.pid
    assert first["STATUS"] == "serving: 2 services, generation 1"
    superd.signal(signal.SIGTERM)
    assert manager.wait_for("STOPPING")["STOPPING"] == "1"
    assert superd.wait() == 0


def test_the_service_manager_is_notified_of_a_reload_and_its_start_time(
    start_superd: Start, supervisor: tuple[str, NotifySocket]
) -> None:
    name, manager = supervisor
    superd = start_notifying(start_superd, name)
    manager.wait_for("READY")
    before = time.monotonic_ns() // 1000
    superd.signal(signal.SIGHUP)
    assert int(manager.wait_for("RELOADING")["MONOTONIC_USEC"]) >= before
    assert manager.wait_for("READY")["STATUS"] == "serving: 2 services, generation 2"
    superd.file.write_text("[")
    superd.signal(signal.SIGHUP)
    manager.wait_for("RELOADING")
    assert "the last reload failed: " in manager.wait_for("READY")["STATUS"]


def test_superd_feeds_the_watchdog_and_asks_for_more_time_while_it_drains(
    start_superd: Start, supervisor: tuple[str, NotifySocket]
) -> None:
    name, manager = supervisor
    superd = start_notifying(start_superd, name, WATCHDOG_USEC="400000")
    for _ in range(3):
        assert manager.wait_for("WATCHDOG") == {"WATCHDOG": "1"}
    with superd.connect("echo") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        superd.signal(signal.SIGTERM)
        for _ in range(2):
            assert int(manager.wait_for("EXTEND_TIMEOUT_USEC")["EXTEND_TIMEOUT_USEC"]) > 1_000_000
        manager.wait_for("WATCHDOG")
    assert superd.wait() == 0


def test_a_watchdog_for_another_process_is_not_fed(
    start_superd: Start, supervisor: tuple[str, NotifySocket]
) -> None:
    name, manager = supervisor
    superd = start_notifying(start_superd, name, WATCHDOG_USEC="400000", WATCHDOG_PID="1")
    manager.wait_for("READY")
    superd.signal(signal.SIGTERM)
    manager.wait_for("STOPPING")
    manager.receive_pending()
    assert not [message for message in manager.messages if "WATCHDOG" in message]


def test_programs_do_not_inherit_the_notify_socket(
    start_superd: Start, supervisor: tuple[str, NotifySocket]
) -> None:
    superd = start_notifying(start_superd, supervisor[0], WATCHDOG_USEC="400000")
    with superd.connect("env") as client:
        shown = client.makefile().read()
    assert "PATH=" in shown
    assert "NOTIFY_SOCKET" not in shown
    assert "WATCHDOG" not in shown


def test_superd_serves_without_a_listener_on_the_notify_socket(
    start_superd: Start, tmp_path: Path
) -> None:
    superd = start_notifying(start_superd, f"{tmp_path}/nobody")
    assert superd.answer()["state"] == "serving"
