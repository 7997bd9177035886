"""Isolated jobs: whatever a job does, its outcome is returned and no process is left."""

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
from tests.support.proc import children

SHORT_TIMEOUT = 1.0  # seconds: long enough for a fork


def outcome_of(job: Callable[[], Any], timeout: float = EVENT_TIMEOUT) -> Outcome:
    """Run one job; check that its process has ended and no descriptor is left open."""
    gc.collect()  # close descriptors that earlier tests have left
    before = len(os.listdir("/proc/self/fd"))
    processes = children(os.getpid())
    outcome = run_isolated({"job": job}, timeout)["job"]
    assert len(os.listdir("/proc/self/fd")) == before
    assert children(os.getpid()) == processes
    return outcome


def raise_(error: BaseException) -> None:
    raise error


def close_all_descriptors() -> None:
    os.closerange(3, 1 << 16)


def wait_for_a_while() -> int:
    time.sleep(0.3)  # the parent's alarm goes off meanwhile
    return 5


def hang() -> None:
    while True:
        signal.pause()


@pytest.mark.parametrize("result", [None, 1, "text", ["a", {"b": None}], "x" * 1_000_000])
def test_a_result_is_returned(result: object) -> None:
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
def test_a_failure_is_described(job: Callable[[], Any], failure: str) -> None:
    assert outcome_of(job) == Outcome(failure=failure)


def test_a_job_that_hangs_is_killed() -> None:
    assert outcome_of(hang, SHORT_TIMEOUT) == Outcome(failure="it took longer than 1 s")


def test_a_job_that_ignores_every_signal_is_killed() -> None:
    def stubborn() -> None:
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        hang()

    assert outcome_of(stubborn, SHORT_TIMEOUT).failure


def test_a_job_that_closes_its_pipe_and_hangs_does_not_hold_up_the_parent() -> None:
    def job() -> None:
        close_all_descriptors()
        hang()

    before = time.monotonic()
    assert outcome_of(job, 60).failure
    assert time.monotonic() - before < 30


def test_a_stopped_job_is_killed() -> None:
    assert outcome_of(lambda: os.kill(os.getpid(), signal.SIGSTOP), SHORT_TIMEOUT).failure


def test_processes_of_a_job_are_killed_with_it(tmp_path: Path) -> None:
    def job(pids: Path, end: Callable[[], Any]) -> Any:
        child = subprocess.Popen(["sleep", "1000"])
        pids.write_text(f"{child.pid} {_forked()}")
        return end()

    jobs = {
        "returns": lambda: job(tmp_path / "returns", lambda: "done"),
        "hangs": lambda: job(tmp_path / "hangs", hang),
        "crashes": lambda: job(tmp_path / "crashes", os.abort),
    }
    outcomes = run_isolated(jobs, SHORT_TIMEOUT)
    assert outcomes["returns"] == Outcome("done")
    assert outcomes["hangs"].failure
    assert outcomes["crashes"].failure
    for name in jobs:
        for pid in map(int, (tmp_path / name).read_text().split()):
            until(partial(is_gone, pid), f"the end of process {pid}")


def is_gone(pid: int) -> bool:
    return not is_alive(pid)


def _forked() -> int:
    """Leave a child that keeps every descriptor open, as a library may."""
    pid = os.fork()
    if pid == 0:
        hang()
    return pid


def test_a_job_in_a_process_group_of_its_own_is_killed() -> None:
    def job() -> None:
        os.setsid()
        hang()

    assert outcome_of(job, SHORT_TIMEOUT).failure


def test_jobs_run_at_the_same_time(tmp_path: Path) -> None:
    big = "x" * 3_000_000

    def first() -> str:
        until((tmp_path / "second").exists, "the second job to run")
        return big

    def second() -> int:
        (tmp_path / "second").touch()
        return 1

    outcomes = run_isolated({"first": first, "second": second}, EVENT_TIMEOUT)
    assert outcomes == {"first": Outcome(big), "second": Outcome(1)}


def test_a_job_that_hangs_does_not_affect_others() -> None:
    outcomes = run_isolated({"hangs": hang, "returns": lambda: 1}, SHORT_TIMEOUT)
    assert outcomes["hangs"].failure == "it took longer than 1 s"
    assert outcomes["returns"] == Outcome(1)


def test_a_job_has_an_empty_input_and_prints_to_standard_error(tmp_path: Path) -> None:
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


def test_signal_handlers_of_the_parent_do_not_interrupt_it() -> None:
    received = []
    before = signal.signal(signal.SIGCHLD, lambda number, _: received.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        alarm = signal.signal(signal.SIGALRM, lambda number, _: received.append(number))
        assert outcome_of(wait_for_a_while) == Outcome(5)
        assert outcome_of(lambda: signal.getsignal(signal.SIGALRM)) == Outcome(0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGCHLD, before)
    assert signal.SIGCHLD in received
    assert signal.SIGALRM in received
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
def test_a_failed_fork_is_described(tmp_path: Path) -> None:
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


def test_superd_may_be_started_with_sigchld_ignored(tmp_path: Path) -> None:
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
