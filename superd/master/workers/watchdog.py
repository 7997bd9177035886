"""Ends workers whose event loop hangs; the supervisor then starts others in their slots.

Runs in the master, at each of its checks. Time counts against a worker only if it could have run:
it slept in a system call, or was given a processor. Time does not count while the worker waits for
a processor, a disk or another thread, nor while it is stopped by SIGSTOP or a debugger: an operator
is at work on it, and can kill it. Without /proc all time counts. Raises nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from superd.master.logs.log import Log
from superd.master.workers.child import Child
from superd.master.workers.generation import Slot
from superd.observe.records import Record
from superd.observe.stacks import Owners
from superd.process.procfs import stat_fields

LATE_AFTER = 0.25  # seconds; the loop of a healthy worker is never that late
LONGEST_STEP = 0.8  # seconds counted between two checks: the master may have been stopped, too
FAIR_SHARE = 4  # a worker that gets 1/FAIR_SHARE of a processor could run
REPORT_AFTER = 4.0  # seconds, for a worker that is not ended: `watchdog = "0s"`

_SECONDS_PER_TICK = 1 / os.sysconf("SC_CLK_TCK")


class Activity(NamedTuple):
    """The state of a worker's main thread (proc_pid_stat(5)), and the seconds that this thread and
    the worker's other threads have run.
    """

    state: str
    own: float
    others: float


def runnable_time(before: Activity | None, activity: Activity | None, passed: float) -> float:
    """Return for how many of the `passed` seconds a worker could have run."""
    if activity is None:
        return passed
    if activity.state == "R":
        return min(passed, FAIR_SHARE * (activity.own - before.own)) if before else passed
    if activity.state == "S":
        return max(0.0, passed - (activity.others - before.others)) if before else passed
    return 0.0


@dataclass
class _Hang:
    """How long one worker hangs, from its first missed heartbeat. `counted` is how many seconds of
    it count, `seen` the monotonic time of the last check.
    """

    seen: float
    activity: Activity | None = None
    counted: float = 0.0
    is_reported: bool = False

    def count(self, now: float, activity: Activity | None) -> None:
        passed = min(now - self.seen, LONGEST_STEP)
        self.counted += runnable_time(self.activity, activity, passed)
        self.seen, self.activity = now, activity


class Watchdog:
    """Watches workers through their lifelines."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._hangs: dict[Child, _Hang] = {}

    def forget(self, child: Child) -> None:
        """Forget a worker that has ended."""
        self._hangs.pop(child, None)

    def check(self, slots: Iterable[Slot], now: float) -> None:
        """End workers that have hung for as long as `watchdog` allows. Generations that drain
        within a time limit are left out: they are killed at its end.
        """
        for slot in slots:
            if slot.child is not None and slot.generation.kill_at is None:
                self._check(slot, slot.child, now)

    def _check(self, slot: Slot, child: Child, now: float) -> None:
        late = child.lifeline.lateness(now)
        if late < LATE_AFTER:
            self._hangs.pop(child, None)
            return
        hang = self._hangs.setdefault(child, _Hang(now - late))
        hang.count(now, _activity(child.pid))
        limit = slot.generation.plan.settings.daemon.watchdog
        if hang.counted < (limit or REPORT_AFTER) or hang.is_reported:
            return
        hang.is_reported = True
        what = "superd ends it" if limit else "watchdog is off, so it is not ended"
        where = self._report(slot, child, hang.counted, what)
        if limit:
            child.end(f"its event loop was blocked, {where}")

    def _report(self, slot: Slot, child: Child, seconds: float, what: str) -> str:
        """Log where a worker hangs; return the place."""
        stack = child.lifeline.stack()
        service, where = stack.place(_owners(slot))
        text = (
            f"the event loop of worker {child.pid} is blocked for {seconds:.1f} s, {where}; {what}"
        )
        detail = stack.lines(with_source=False)  # a worker could name a file that only root reads
        self._log.write(Record("error", text, service=service, detail=detail))
        return where


def _owners(slot: Slot) -> Owners:
    owners: dict[str, list[str]] = {}
    plugins = slot.generation.plan.plugins
    for name, entry in slot.pool.services.items():
        if entry.plugin not in plugins:
            continue  # removed by the time of an upgrade; its worker is older
        module = plugins[entry.plugin].entry_point.module
        owners.setdefault(module.partition(".")[0], []).append(name)
    return owners


def _activity(pid: int) -> Activity | None:
    try:
        main, whole = stat_fields(pid, thread=pid), stat_fields(pid)
        own = _seconds(main)
        return Activity(main[0], own, _seconds(whole) - own)
    except (OSError, ValueError, IndexError):
        return None


def _seconds(fields: list[str]) -> float:
    """Return user and system time."""
    return (int(fields[11]) + int(fields[12])) * _SECONDS_PER_TICK
