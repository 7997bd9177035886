"""superd's start and end: without a master, with ignored signals, in a terminal, as process 1."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support import proc
from tests.support.clients import connect_many, connect_tcp, receive_to_end
from tests.support.harness import (
    EVENT_TIMEOUT,
    Superd,
    command,
    exchange,
    is_alive,
    read_lines,
    until,
)

CONNECTIONS = 20

ECHO = """
[daemon]
loop = "{loop}"
workers = 2
drain-timeout = "{drain}"

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:{port}"
"""


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def configuration(loop: str = "auto", drain: str = "60s", port: int = 0) -> str:
    toml = ECHO.replace("{loop}", loop).replace("{drain}", drain)
    return toml.replace("{port}", str(port))


def connects(superd: Superd) -> bool:
    try:
        connect_tcp(superd.address("echo")).close()
    except ConnectionRefusedError:
        return False
    return True


def test_workers_of_a_killed_master_finish_their_connections_and_release_the_addresses(
    start_superd: Start, loop: str
) -> None:
    superd = start_superd(configuration(loop))
    workers = proc.children(superd.pid)
    with connect_many(superd.address("echo"), CONNECTIONS) as clients:
        for client in clients:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        os.kill(superd.pid, signal.SIGKILL)
        until(lambda: not connects(superd), "the workers to stop accepting")
        again = start_superd(configuration(loop, port=superd.address("echo")[1]))
        assert exchange(again.connect("echo"), b"hello") == b"hello"
        assert [exchange(client, b"last words") for client in clients] == [
            b"last words"
        ] * CONNECTIONS
    until(lambda: not [pid for pid in workers if is_alive(pid)], "the end of the old workers")
    assert exchange(again.connect("echo"), b"hello") == b"hello"


def test_workers_of_a_killed_master_drain_for_drain_timeout_at_most(
    start_superd: Start,
) -> None:
    superd = start_superd(configuration(drain="1s"))
    workers = proc.children(superd.pid)
    with connect_many(superd.address("echo"), CONNECTIONS) as clients:
        for client in clients:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        os.kill(superd.pid, signal.SIGKILL)
        for client in clients:
            assert receive_to_end(client)[0] == b""
    until(lambda: not [pid for pid in workers if is_alive(pid)], "the end of the workers")


WITH_SIGNALS_IGNORED = """
import os, signal, sys
for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_superd_handles_signals_that_its_parent_ignored_and_blocked(
    start_superd: Start,
) -> None:
    superd = start_superd(configuration(), sys.executable, "-c", WITH_SIGNALS_IGNORED)
    for pid in (superd.pid, *proc.children(superd.pid)):
        assert proc.threads(pid)[0]["SigBlk"] == proc.NO_CAPABILITY
    superd.signal(signal.SIGHUP)
    superd.wait_for_log("reloaded: ")
    victim = superd.workers()[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: victim not in superd.workers() and len(superd.workers()) == 2, "its successor")
    assert not proc.zombies(superd.pid)
    assert exchange(superd.connect("echo"), b"hello") == b"hello"
    superd.signal(signal.SIGTERM)
    assert superd.wait() == 0


@pytest.mark.tool("nohup")
def test_superd_under_nohup_reloads_on_hup(start_superd: Start) -> None:
    superd = start_superd(configuration(), "nohup")
    superd.signal(signal.SIGHUP)
    superd.wait_for_log("reloaded: ")
    assert exchange(superd.connect("echo"), b"hello") == b"hello"
    superd.signal(signal.SIGTERM)
    assert superd.wait() == 0


@pytest.mark.tool("setsid")
@pytest.mark.terminal
def test_ctrl_c_in_a_terminal_stops_superd_immediately_and_without_a_traceback(
    tmp_path: Path,
) -> None:
    controller, terminal = os.openpty()
    superd = Superd(tmp_path, configuration())
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command("run", "-c", str(superd.write()))],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    with open(controller, "r+b", buffering=0) as keyboard:
        shown = b""
        while b"ready\r\n" not in shown or b"info: ready" not in shown:
            shown += keyboard.read(4096)
        superd.announced = shown.decode().splitlines()
        pids = [superd.pid, *proc.children(superd.pid)]
        with connect_tcp(superd.address("echo")) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            started = time.monotonic()
            keyboard.write(b"\x03")
            assert process.wait(EVENT_TIMEOUT) == 0
            assert time.monotonic() - started < 5
        shown = b""
        try:
            while part := keyboard.read(4096):
                shown += part
        except OSError:  # the last process has closed the terminal
            pass
    assert not [pid for pid in pids if is_alive(pid)]
    lines = shown.decode().splitlines()
    assert lines[0] == "^C" or lines[0].startswith("^C2")
    assert [line.rpartition("info: ")[2] for line in lines if "info" in line] == [
        "stopping at once",
        "stopped",
    ]
    assert "Traceback" not in shown.decode()


@pytest.mark.root
@pytest.mark.tool("unshare", "nsenter")
def test_superd_as_process_1_reaps_orphans_and_stops_on_term(tmp_path: Path) -> None:
    superd = Superd(tmp_path, configuration())
    process = subprocess.Popen(
        [
            *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *command("run", "-c", str(superd.write())),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = read_lines(process.stdout)
        assert "ready" in lines  # reads up to that line only
        assert (
            tmp_path / "pid"
        ).read_text() == "1\n"  # its pid in the namespace, so it cannot be signalled here
        (master,) = proc.children(process.pid)
        workers = proc.children(master)
        orphans = "for number in $(seq 50); do sleep 600 & done"
        inside = ["nsenter", "--pid", "--mount", "--target", str(master)]
        subprocess.run([*inside, "sh", "-c", orphans], check=True)
        adopted = set(proc.children(master)) - set(workers)
        assert len(adopted) == 50
        for pid in adopted:
            os.kill(pid, signal.SIGKILL)
        until(lambda: proc.children(master) == workers, "the reaping of all orphans")

        os.kill(workers[0], signal.SIGKILL)
        until(lambda: len(set(proc.children(master)) - {workers[0]}) == 2, "a new worker")
        os.kill(master, signal.SIGTERM)
        _, log = process.communicate(timeout=EVENT_TIMEOUT)
        assert process.returncode == 0
        assert "stopped" in log
        assert "Traceback" not in log
    finally:
        process.kill()
        process.communicate()


@pytest.mark.root
@pytest.mark.tool("unshare")
def test_superd_as_process_1_stops_on_term_during_its_start(tmp_path: Path) -> None:
    superd = Superd(tmp_path, configuration())
    process = subprocess.Popen(
        [
            *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *command("run", "-c", str(superd.write())),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    (master,) = until(lambda: proc.children(process.pid), "process 1")
    until(lambda: signal.SIGTERM in caught_by(master), "superd to catch TERM")
    os.kill(master, signal.SIGTERM)
    _, log = process.communicate(timeout=EVENT_TIMEOUT)
    assert process.returncode in (0, 128 + signal.SIGTERM)
    assert "Traceback" not in log


def caught_by(pid: int) -> set[int]:
    """Return the signals for which a process has handlers."""
    mask = int(proc.threads(pid)[0]["SigCgt"], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}
