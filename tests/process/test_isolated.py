"""Processes that are thrown away: whatever happens in one, its outcome comes and nothing stays."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from superd.errors import SuperdError
from superd.process.isolated import Outcome, run_isolated
from tests.support.harness import EVENT_TIMEOUT, command, is_alive, until

SOON = 1.0  # seconds: a timeout short enough for a test, and long enough for a fork


def outcome_of(job: Callable[[], Any], timeout: float = EVENT_TIMEOUT) -> Outcome:
    """Run one job; the process that ran it is gone afterwards, and no descriptor is left."""
    gc.collect()  # of what earlier tests have left, which would close theirs meanwhile
    before = len(os.listdir("/proc/self/fd"))
    outcome = run_isolated({"job": job}, timeout)["job"]
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    return outcome


def raise_(error: BaseException) -> None:
    raise error


def close_all_descriptors() -> None:
    os.closerange(3, 1 << 16)


def wait_for_a_while() -> int:
    time.sleep(0.3)  # so that the parent's alarm goes off meanwhile
    return 5


def hang() -> None:
    while True:
        signal.pause()


@pytest.mark.parametrize("result", [None, 1, "text", ["a", {"b": None}], "x" * 1_000_000])
def test_a_result_comes_back(result: object) -> None:
    assert outcome_of(lambda: result) == Outcome(result)


@pytest.mark.parametrize(
    ("job", "failure"),
    [
        (lambda: raise_(KeyError("x")), "KeyError: 'x'"),
        (lambda: raise_(SystemExit(3)), "SystemExit: 3"),
        (lambda: raise_(KeyboardInterrupt()), "KeyboardInterrupt"),
        (lambda: raise_(FileNotFoundError(2, "", "/x")), "No such file or directory: /x"),
        (lambda: raise_(SuperdError("in our own words")), "in our own words"),
        (lambda: object(), "TypeError: Object of type object is not JSON serializable"),
        (lambda: os._exit(0), "its process ended with code 0"),
        (lambda: os._exit(7), "its process ended with code 7"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "its process was ended by SIGKILL"),
        (lambda: os.abort(), "its process was ended by SIGABRT"),
        (lambda: ctypes.string_at(0), "its process was ended by SIGSEGV"),
    ],
)
def test_a_failure_is_told_in_words(job: Callable[[], Any], failure: str) -> None:
    assert outcome_of(job) == Outcome(failure=failure)


def test_a_job_that_hangs_is_ended() -> None:
    assert outcome_of(hang, SOON) == Outcome(failure="it took longer than 1 s")


def test_a_job_that_ignores_every_signal_is_ended() -> None:
    def stubborn() -> None:
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        hang()

    assert outcome_of(stubborn, SOON).failure


def test_a_job_that_closes_its_pipe_and_hangs_does_not_hold_up_the_parent() -> None:
    def job() -> None:
        close_all_descriptors()
        hang()

    before = time.monotonic()
    assert outcome_of(job, 60).failure
    assert time.monotonic() - before < 30


def test_a_job_that_is_stopped_is_ended() -> None:
    assert outcome_of(lambda: os.kill(os.getpid(), signal.SIGSTOP), SOON).failure


def test_what_a_job_has_started_is_ended_with_it(tmp_path: Path) -> None:
    def job(told: Path, end: Callable[[], Any]) -> Any:
        child = subprocess.Popen(["sleep", "1000"])
        told.write_text(f"{child.pid} {_forked()}")
        return end()

    jobs = {
        "returns": lambda: job(tmp_path / "returns", lambda: "done"),
        "hangs": lambda: job(tmp_path / "hangs", hang),
        "crashes": lambda: job(tmp_path / "crashes", os.abort),
    }
    outcomes = run_isolated(jobs, SOON)
    assert outcomes["returns"] == Outcome("done")
    assert outcomes["hangs"].failure
    assert outcomes["crashes"].failure
    for name in jobs:
        for pid in map(int, (tmp_path / name).read_text().split()):
            until(partial(is_gone, pid), f"the end of process {pid}")


def is_gone(pid: int) -> bool:
    return not is_alive(pid)


def _forked() -> int:
    """Leave a child that holds every descriptor open, as a helper of a library may."""
    pid = os.fork()
    if pid == 0:
        hang()
    return pid


def test_a_job_in_a_group_of_its_own_is_ended_all_the_same() -> None:
    def job() -> None:
        os.setsid()
        hang()

    assert outcome_of(job, SOON).failure


def test_jobs_run_at_once_and_one_that_hangs_costs_the_others_nothing() -> None:
    big = "x" * 3_000_000
    outcomes = run_isolated({"hangs": hang, "big": lambda: big, "small": lambda: 1}, 5 * SOON)
    assert outcomes["hangs"].failure == "it took longer than 5 s"
    assert outcomes["big"] == Outcome(big)
    assert outcomes["small"] == Outcome(1)


def test_a_job_has_no_terminal_to_read_and_none_of_our_output(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from superd.process.isolated import run_isolated\n"
        "print('ours')\n"
        "def job():\n"
        "    print('noise'); os.write(1, b'more noise'); return sys.stdin.read()\n"
        "print(run_isolated({'job': job})['job'].result)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="secret", capture_output=True, text=True, check=True
    )
    assert done.stdout == "ours\n\n"
    assert "noise" in done.stderr


def test_signals_that_the_parent_catches_do_not_disturb_it() -> None:
    heard = []
    before = signal.signal(signal.SIGCHLD, lambda number, _: heard.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        alarm = signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
        assert outcome_of(wait_for_a_while) == Outcome(5)
        assert outcome_of(lambda: signal.getsignal(signal.SIGALRM)) == Outcome(0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGCHLD, before)
    assert signal.SIGCHLD in heard
    assert signal.SIGALRM in heard
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_an_interrupt_leaves_no_job_behind(tmp_path: Path) -> None:
    def job() -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        hang()

    def interrupted(number: int, _: object) -> None:
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupted)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_isolated({"job": job}, EVENT_TIMEOUT)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not is_alive(int((tmp_path / "pid").read_text()))


@pytest.mark.root
def test_no_room_for_a_process_is_told_in_words(tmp_path: Path) -> None:
    code = (
        "import os, resource\n"
        "from superd.errors import SuperdError\n"
        "from superd.process.isolated import run_isolated\n"
        "os.setresuid(54321, 54321, 54321)\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n"
        "try: run_isolated({'one': int, 'two': int})\n"
        "except SuperdError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "cannot start a process: Resource temporarily unavailable\n"


def test_whoever_ignores_the_end_of_children_may_start_superd(tmp_path: Path) -> None:
    file = tmp_path / "superd.toml"
    file.write_text('[service.a]\nplugin = "echo"\nlisten = "unix://@a"\n')
    file.chmod(0o600)
    done = subprocess.run(
        ["sh", "-c", 'trap "" CHLD; exec "$@"', "sh", *command("check", str(file))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("configuration OK\n", "")
