"""The resources that a process uses: processor time, memory, descriptors (proc(5)).

Linux. Needs root for a confined worker: only root may read about it.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterable
from pathlib import Path

from tests.support.proc import descriptor_names

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def processor_time(pid: int) -> float:
    """Return the seconds of processor time of a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def private_memory(pid: int) -> int:
    """Return the bytes of memory that the process does not share with others."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(1024 * int(size) for size in re.findall(r"^Private_\w+: +(\d+) kB", text, re.M))


def open_descriptors(pids: Iterable[int]) -> list[int]:
    """Return how many descriptors each process has."""
    return [len(descriptor_names(pid)) for pid in pids]


def lowest_free_descriptor(pid: int) -> int:
    taken = {int(name) for name in descriptor_names(pid)}
    return next(number for number in range(len(taken) + 1) if number not in taken)


def limit_descriptors(pid: int, most: int | None) -> None:
    """Set the soft limit of another process; None is the hard limit."""
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard if most is None else most, hard))
