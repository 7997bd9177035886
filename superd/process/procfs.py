"""What a process has used so far, as /proc tells (proc(5)).

Runs in the master, and only when somebody asks. Never raises: of a process that is gone, or where
there is no such /proc, nothing is told.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """`children_cpu` is what those of its children have used that have ended and were reaped.
    `descriptors` is None where the kernel does not tell.
    """

    started: float  # seconds since 1970
    cpu: float  # seconds
    children_cpu: float
    memory: int  # bytes that are resident
    descriptors: int | None


def usage_of(pid: int) -> Usage | None:
    """Return what a process has used; None where that cannot be told."""
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
        descriptors=_descriptors(pid),
    )


def stat_fields(pid: int, thread: int | None = None) -> list[str]:
    """Return the fields of /proc/PID/stat, or of one of its threads, from the state on; the state
    is field 3 of proc_pid_stat(5). Raises OSError if there is no such process.
    """
    path = f"/proc/{pid}/stat" if thread is None else f"/proc/{pid}/task/{thread}/stat"
    text = Path(path).read_text(encoding="ascii", errors="replace")
    return text.rpartition(")")[2].split()  # the name, in parentheses, may hold anything


def _descriptors(pid: int) -> int | None:
    directory = f"/proc/{pid}/fd"
    try:
        # since Linux 6.2 that is their number, before it was 0
        return os.stat(directory).st_size or len(os.listdir(directory))
    except OSError:
        return None


@cache
def _boot() -> float:
    """Return when the machine was started; the same each time, or processes would seem to be new
    ones whenever the clock is corrected.
    """
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
