"""What /proc tells of a process is what the process did."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from superd.process.procfs import usage_of


def test_a_process_is_told_of_as_it_is() -> None:
    usage = usage_of(os.getpid())
    assert usage is not None
    now, spent = time.time(), os.times()
    assert usage.started < now + 1
    assert usage.cpu <= spent.user + spent.system + 0.05
    assert usage.children_cpu <= spent.children_user + spent.children_system + 0.05
    assert usage.memory > 1 << 20
    assert usage.descriptors == len(os.listdir("/proc/self/fd")) - 1  # which is open for the list


def test_a_name_that_looks_like_the_rest_of_the_line_does_not_matter() -> None:
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


def test_of_a_process_that_is_gone_nothing_is_told() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert usage_of(child.pid) is None
