"""How much of the machine a process uses: processor time, memory, descriptors (proc(5)).

Linux. Needs root for a confined worker, which shows itself to nobody else.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterable
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def processor_time(pid: int) -> float:
    """Return the seconds that a process has computed, in user mode and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def private_memory(pid: int) -> int:
    """Return the bytes of memory that only this process has; what is shared is not its doing."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(1024 * int(size) for size in re.findall(r"^Private_\w+: +(\d+) kB", text, re.M))


def open_descriptors(pids: Iterable[int]) -> list[int]:
    """Return how many descriptors each process has."""
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]


def lowest_free_descriptor(pid: int) -> int:
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return next(number for number in range(len(taken) + 1) if number not in taken)


def limit_descriptors(pid: int, most: int | None) -> None:
    """Set the soft limit of another process; None is as much as it may have."""
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard if most is None else most, hard))
