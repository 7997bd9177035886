"""Signals of all kinds, in any order and at any time."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support import proc
from tests.support.harness import EVENT_TIMEOUT, Superd, command, exchange, is_alive, until

PR_SET_CHILD_SUBREAPER = 36

ECHO = """
[daemon]
loop = "{loop}"

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
"""

HARMLESS = (signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_random_signals_fail_no_client(start_superd: Start, loop: str) -> None:
    superd = start_superd(ECHO.replace("{loop}", loop))
    rng = random.Random(loop)
    stop = threading.Event()

    def send(pid: int) -> None:
        for _ in range(300):
            os.kill(pid, rng.choice(HARMLESS))
            stop.wait(0.001)

    storm = threading.Thread(target=send, args=(superd.pid,))
    storm.start()
    served = 0
    try:
        while storm.is_alive():
            assert exchange(superd.connect("echo"), b"hello") == b"hello"
            served += 1
    finally:
        stop.set()
        storm.join()
    assert served
    assert superd.answer()["state"] == "serving"

    def are_done() -> bool:
        now = superd.answer()
        changes = [now["reload"], now["upgrade"]]
        return all(change and change["state"] == "done" for change in changes)

    until(are_done, "the end of the last reload and the last upgrade", 60)
    until(lambda: len(superd.workers()) == 1, "the end of the old workers")
    superd.signal(signal.SIGTERM)
    assert superd.wait() == 0
    assert "Traceback" not in superd.log()


def test_a_worker_ignores_the_signals_of_a_terminal(start_superd: Start) -> None:
    superd = start_superd(ECHO.replace("{loop}", "auto"))
    (worker,) = superd.workers()
    with superd.connect("echo") as client:
        for number in {*HARMLESS, signal.SIGINT} - {
            signal.SIGUSR1
        }:  # USR1 is how the master retires it
            os.kill(worker, number)
            client.sendall(b"x")
            assert client.recv(1) == b"x"
    assert superd.workers() == [worker]


def test_two_term_signals_stop_superd_with_exit_code_0(start_superd: Start) -> None:
    superd = start_superd(ECHO.replace("{loop}", "auto"))
    for _ in range(2):
        superd.signal(signal.SIGTERM)
    assert superd.wait() == 0


def test_usr1_reopens_a_renamed_log(start_superd: Start) -> None:
    toml = ECHO.replace('loop = "{loop}"', 'log = ["./superd.log", "stderr"]')
    superd = start_superd(toml)
    path, old = superd.directory / "superd.log", superd.directory / "superd.log.1"
    path.rename(old)
    superd.signal(signal.SIGHUP)
    until(lambda: "reloaded: " in old.read_text(), "a line in the old file")
    assert not path.exists()
    superd.signal(signal.SIGUSR1)
    until(path.exists, "the new file")
    until(lambda: "log files reopened" in path.read_text(), "a line in the new file")
    assert "reopened" not in old.read_text()


@pytest.fixture
def adopting() -> Iterator[None]:
    """Become the parent of every orphaned descendant, so that a test can count them."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "number",
    [5, pytest.param(20, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.soak)],
)
def test_term_at_any_moment_of_a_start_leaves_no_process_behind(
    adopting: None, tmp_path: Path, number: int
) -> None:
    rng = random.Random(number)

    def start_and_end(directory: Path, delays: list[float]) -> list[int]:
        codes = []
        superd = Superd(directory, ECHO.replace("{loop}", "auto"))
        superd.write()
        for delay in delays:
            process = subprocess.Popen(
                command("run", "-c", str(superd.file)),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            time.sleep(delay)  # the test tries random moments, so there is no event to wait for
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=EVENT_TIMEOUT)
            assert b"Traceback" not in log
            codes.append(process.returncode)
            left = {entry.name for entry in directory.iterdir()}
            assert left == {"superd.toml"}
        return codes

    directories = [tmp_path / name for name in "ab"]
    for directory in directories:
        directory.mkdir()
    delays = [[rng.uniform(0.0, 0.8) for _ in range(number // 2)] for _ in directories]
    with ThreadPoolExecutor(len(directories)) as pool:
        ends = pool.map(start_and_end, directories, delays)
        codes = {code for codes in ends for code in codes}
    # killed while Python starts, an exception until superd serves, a clean stop after that
    assert codes <= {-signal.SIGTERM, 128 + signal.SIGTERM, 0}
    orphans = proc.children(os.getpid())
    survivors = [pid for pid in orphans if is_alive(pid)]
    for pid in orphans:
        os.waitpid(pid, os.WNOHANG)
    assert not survivors
