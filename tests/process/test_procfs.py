"""The usage of a process as read from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from superd.process.procfs import usage_of


def test_usage_agrees_with_the_process_itself() -> None:
    usage = usage_of(os.getpid())
    assert usage is not None
    now, spent = time.time(), os.times()
    assert usage.started < now + 1
    assert usage.cpu <= spent.user + spent.system + 0.05
    assert usage.children_cpu <= spent.children_user + spent.children_system + 0.05
    assert usage.memory > 1 << 20
    assert usage.descriptors == len(os.listdir("/proc/self/fd")) - 1  # the open directory itself


def test_a_process_name_may_look_like_the_rest_of_the_line() -> None:
    code = (
        "import setproctitle; setproctitle.setthreadtitle(') S 1 (x) 2')\n"
        "print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        usage = usage_of(child.pid)
        child.communicate(b"\n")
    assert usage is not None
    assert usage.descriptors == 3
    assert abs(usage.started - time.time()) < 600


def test_a_process_that_has_ended_has_no_usage() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert usage_of(child.pid) is None
