"""Reads what a process has used so far, and its own children, from /proc (proc(5)).

Runs in the master, for status and metrics and in the watchdog, and in workers, which count their
descriptors and look after programs. `stat_fields` raises OSError for a process that has ended and
on a system without such a /proc; the others return nothing instead.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What a process uses.

    `children_cpu` is that of its children that have ended and were reaped. `descriptors` is None if
    the kernel does not report it.
    """

    started: float  # seconds since 1970
    cpu: float  # seconds
    children_cpu: float  # seconds
    memory: int  # resident, in bytes
    descriptors: int | None


def usage_of(pid: int) -> Usage | None:
    """Return what a process uses; None if it has ended or /proc is missing."""
    try:
        fields = stat_fields(pid)
    except OSError:
        return None
    user, system, children_user, children_system = map(int, fields[11:15])
    ticks = os.sysconf("SC_CLK_TCK")
    return Usage(
        started=_boot() + int(fields[19]) / ticks,
        cpu=(user + system) / ticks,
        children_cpu=(children_user + children_system) / ticks,
        memory=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        descriptors=count_descriptors(pid),
    )


def stat_fields(pid: int, thread: int | None = None) -> list[str]:
    """Return the fields of /proc/PID/stat, or of one of its threads, from the state on.

    The state is field 3 of proc_pid_stat(5). Raises OSError if there is no such process.
    """
    path = f"/proc/{pid}/stat" if thread is None else f"/proc/{pid}/task/{thread}/stat"
    text = Path(path).read_text(encoding="ascii", errors="replace")
    return text.rpartition(")")[2].split()  # the name in parentheses may contain any character


def own_children() -> list[int]:
    """Return the children of this process, also those that have ended and are not reaped."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            path = Path(f"/proc/self/task/{thread}/children")
            found += map(int, path.read_text(encoding="ascii").split())
    return found


def count_descriptors(pid: int) -> int | None:
    """Return how many descriptors a process has open; None if the kernel does not report it."""
    directory = f"/proc/{pid}/fd"
    try:
        # the size is their number since Linux 6.2, and 0 before
        return os.stat(directory).st_size or len(os.listdir(directory))
    except OSError:
        return None


@cache
def _boot() -> float:
    """Return when the machine was started, in seconds since 1970.

    The value is kept, as a correction of the clock would make known processes look like new ones.
    """
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
