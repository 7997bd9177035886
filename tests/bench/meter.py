"""CPU time and memory of a server with all its children, including ended ones.

CPU time comes from a cgroup (v1 cpuacct, exact) if one can be made, else from /proc (10 ms steps;
a child that its parent never reaps is not counted). Memory is PSS: a page shared by several
processes counts in part for each, including processes outside, such as the benchmark's Python.
A process that ends while it is read counts as zero.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

CPUACCT = Path("/sys/fs/cgroup/cpuacct")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
QUIET_INTERVAL = 0.05  # seconds
QUIET_CPU = 0.002  # seconds of CPU time within the interval
QUIET_TIMEOUT = 3.0  # seconds


class Meter(Protocol):
    """Measures a server's processes."""

    def pids(self) -> list[int]:
        """Return the processes that are alive now."""

    def cpu_seconds(self) -> float:
        """Return the CPU time used so far, ended children included."""

    def close(self) -> None:
        """Release the meter's resources. Call it after the processes have ended."""


class CgroupMeter:
    """Measures with a cgroup that contains the server's processes only."""

    def __init__(self, group: Path) -> None:
        self._group = group

    def pids(self) -> list[int]:
        return [int(pid) for pid in (self._group / "cgroup.procs").read_text().split()]

    def cpu_seconds(self) -> float:
        return int((self._group / "cpuacct.usage").read_text()) / 1e9

    def close(self) -> None:
        self._group.rmdir()


class ProcMeter:
    """Measures the children of a process and the members of the session that it leads."""

    def __init__(self, leader: int) -> None:
        self._leader = leader

    def pids(self) -> list[int]:
        return [stat.pid for stat in self._family() if stat.state != "Z"]

    def cpu_seconds(self) -> float:
        return sum(stat.ticks for stat in self._family()) / TICKS_PER_SECOND

    def close(self) -> None:
        pass

    def _family(self) -> list["ProcessStat"]:
        family: dict[int, ProcessStat] = {}
        for stat in sorted(_all_processes()):  # by pid, so that parents come before children
            if self._leader in (stat.pid, stat.session) or stat.parent in family:
                family[stat.pid] = stat
        return list(family.values())


class ProcessStat(NamedTuple):
    """The fields of /proc/PID/stat that are needed here."""

    pid: int
    parent: int
    session: int
    state: str
    ticks: int


def _all_processes() -> Iterator[ProcessStat]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            text = (entry / "stat").read_text()
            state, parent, _, session, *rest = text.rpartition(")")[2].split()
            ticks = sum(int(field) for field in rest[7:11])  # utime, stime, cutime, cstime
            yield ProcessStat(int(entry.name), int(parent), int(session), state, ticks)


def meter_of(pid: int) -> Meter:
    """Return a meter for a program that was just started, before it has children."""
    group = CPUACCT / f"superd-bench-{pid}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(pid))
    except OSError:
        return ProcMeter(pid)
    return CgroupMeter(group)


def pss_bytes(meter: Meter) -> int:
    """Return the memory that a server's processes use now."""
    return sum(_pss_of(pid) for pid in meter.pids())


def _pss_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def wait_until_quiet(meter: Meter) -> None:
    """Wait until the processes use almost no CPU, so that the last client's work is done."""
    deadline = time.monotonic() + QUIET_TIMEOUT
    before = meter.cpu_seconds()
    while time.monotonic() < deadline:
        time.sleep(QUIET_INTERVAL)
        after = meter.cpu_seconds()
        if after - before < QUIET_CPU:
            return
        before = after
