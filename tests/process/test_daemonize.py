"""Becoming a daemon, and the verdict that the calling command waits for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from superd.errors import SuperdError
from superd.process.daemonize import Launch, Verdict

DETACH = """
import json, os, sys
from superd.process.daemonize import Launch, Verdict, detach

launch = detach()
if isinstance(launch, Verdict):
    print(launch.text)
    sys.exit(launch.code)
mask = os.umask(0)
facts = {
    "session": os.getsid(0), "group": os.getpgrp(), "pid": os.getpid(), "cwd": os.getcwd(),
    "umask": mask, "standard": [os.readlink(f"/proc/self/fd/{n}") for n in range(3)],
    "terminal": open("/proc/self/stat").read().rpartition(")")[2].split()[4],
    "open": len(os.listdir("/proc/self/fd")),
}
try:
    open("/dev/tty")
    facts["has terminal"] = True
except OSError:
    facts["has terminal"] = False
launch.report(Verdict(5, json.dumps(facts)))
launch.report(Verdict(6, "not sent"))
os._exit(0)
"""


@pytest.mark.terminal
def test_a_daemon_has_its_own_session_and_no_terminal() -> None:
    import pty

    controller, terminal = pty.openpty()
    with open(controller, "rb", buffering=0), open(terminal, "wb", buffering=0):
        done = subprocess.run(
            # setsid --ctty: the terminal becomes the controlling one of the program
            ["setsid", "--wait", "--ctty", sys.executable, "-c", DETACH],
            stdin=terminal,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 5, done.stderr
    facts = json.loads(done.stdout)
    assert facts["session"] == facts["group"] != facts["pid"]  # it can never acquire a terminal
    assert facts["session"] != os.getsid(0)
    assert facts["terminal"] == "0"
    assert not facts["has terminal"]
    assert facts["cwd"] == "/"
    assert facts["umask"] == 0o022
    assert facts["standard"] == ["/dev/null"] * 3
    assert facts["open"] == 5  # these, the pipe to the caller, and the listed directory


def test_a_daemon_that_dies_without_a_verdict_is_a_failure() -> None:
    code = DETACH.replace("mask = ", "os.abort()\nmask = ")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "superd ended before it was ready" in done.stdout


def test_an_interrupt_during_the_fork_is_not_lost() -> None:
    """Python drops what is raised in the functions that it calls after a fork."""
    interrupt = "os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGINT))"
    code = DETACH.replace("launch = ", f"import signal\n{interrupt}\nlaunch = ")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT


def test_a_daemon_whose_caller_has_ended_raises_an_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    launch = Launch(writer)
    with pytest.raises(SuperdError, match="ended before superd was ready"):
        launch.report(Verdict(0, ""))
    launch.report(Verdict(1, "a second verdict is not sent"))


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 2), (0, 1, 2)], ids=str)
def test_closed_standard_descriptors_are_opened_for_programs_too(
    closed: tuple[int, ...],
) -> None:
    code = """
import os, subprocess, sys
from superd.process.daemonize import open_standard_descriptors
open_standard_descriptors()
probe = "import os; [os.fstat(n) for n in range(3)]; os._exit(7)"
code = subprocess.run([sys.executable, "-c", probe]).returncode
os._exit(code if os.open(os.devnull, os.O_RDONLY) > 2 else 1)
"""
    shell = " ".join(["exec", '"$0"', "-c", '"$1"', *(f"{number}>&-" for number in closed)])
    done = subprocess.run(["sh", "-c", shell, sys.executable, code], check=False)
    assert done.returncode == 7
