"""Ends workers whose event loop stands still for too long; the master then starts others.

Runs in the master, at each of its looks. Time counts against a worker as far as it could have gone
on: while it sleeps in a call of a handler's, or is given a processor. It does not while it waits
for a processor, a disk or another thread, nor while somebody has stopped it, as with SIGSTOP or a
debugger: who stopped it is at work on it, and whoever wants another in its place can kill it.
Where there is no /proc, all time counts. Never raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from superd.master.logs.log import Log
from superd.master.workers.child import Child
from superd.master.workers.generation import Place
from superd.observe.records import Record
from superd.observe.stacks import Owners
from superd.worker.lifeline import Lifeline

LATE = 0.25  # seconds; the loops of workers that are well are less late than that
MOST_AT_ONCE = 0.8  # seconds between two looks that count: the master may have been stopped, too
FAIR = 4  # a worker that gets this fraction of a processor has its chance
TOLD_AFTER = 4.0  # seconds, of a worker that is not ended, by `watchdog = "0s"`

_TICK = 1 / os.sysconf("SC_CLK_TCK")


class Activity(NamedTuple):
    """What a worker's main thread does, as proc_pid_stat(5) has it, and for how many seconds this
    and its other threads have run.
    """

    state: str
    own: float
    others: float


def chance(before: Activity | None, activity: Activity | None, passed: float) -> float:
    """Return for how much of the time that passed a worker could have gone on."""
    if activity is None:
        return passed
    if activity.state == "R":
        return min(passed, FAIR * (activity.own - before.own)) if before else passed
    if activity.state == "S":
        return max(0.0, passed - (activity.others - before.others)) if before else passed
    return 0.0


@dataclass
class _Standstill:
    """Of one worker, from the first beat that was missed; `still` is how much of it counts."""

    seen: float
    activity: Activity | None = None
    still: float = 0.0
    is_told: bool = False

    def count(self, now: float, activity: Activity | None) -> None:
        passed = min(now - self.seen, MOST_AT_ONCE)
        self.still += chance(self.activity, activity, passed)
        self.seen, self.activity = now, activity


class Watchdog:
    """Watches all workers by their lifelines."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lifelines: dict[Child, Lifeline] = {}
        self._standstills: dict[Child, _Standstill] = {}

    def watch(self, child: Child, lifeline: Lifeline) -> None:
        """Watch a worker from now on."""
        self._lifelines[child] = lifeline

    def lifeline(self, child: Child) -> Lifeline:
        """Return what a worker is watched by."""
        return self._lifelines[child]

    def forget(self, child: Child) -> None:
        """Watch a worker no more, for it has ended."""
        self._standstills.pop(child, None)
        self._lifelines.pop(child).close()

    def look(self, places: Iterable[Place], now: float) -> None:
        """End workers that have stood still for as long as `watchdog` says, but for those whose
        time is limited anyway, since they drain.
        """
        for place in places:
            if place.child is not None and place.generation.kill_at is None:
                self._look(place, place.child, now)

    def _look(self, place: Place, child: Child, now: float) -> None:
        late = self._lifelines[child].lateness(now)
        if late < LATE:
            self._standstills.pop(child, None)
            return
        standstill = self._standstills.setdefault(child, _Standstill(now - late))
        standstill.count(now, _activity(child.pid))
        limit = place.generation.plan.settings.daemon.watchdog
        if standstill.still < (limit or TOLD_AFTER) or standstill.is_told:
            return
        standstill.is_told = True
        what = "it is ended" if limit else "it is left alone"
        where = self._tell(place, child, standstill.still, what)
        if limit:
            child.end(f"it stood still, {where}")

    def _tell(self, place: Place, child: Child, still: float, what: str) -> str:
        """Log where a worker stands; return the place."""
        stack = self._lifelines[child].stack()
        service, where = stack.place(_owners(place))
        text = f"worker {child.pid} has stood still for {still:.1f} s, {where}; {what}"
        detail = stack.lines(with_source=False)  # a file that it names may be one of root's
        self._log.write(Record("error", text, service=service, detail=detail))
        return where


def _owners(place: Place) -> Owners:
    owners: dict[str, list[str]] = {}
    plugins = place.generation.plan.plugins
    for name, entry in place.pool.services.items():
        if entry.plugin not in plugins:
            continue  # an upgrade has found it gone; its worker is from before
        module = plugins[entry.plugin].entry_point.module
        owners.setdefault(module.partition(".")[0], []).append(name)
    return owners


def _activity(pid: int) -> Activity | None:
    try:
        main = _stat(f"/proc/{pid}/task/{pid}/stat")
        whole = _stat(f"/proc/{pid}/stat")
    except (OSError, ValueError, IndexError):
        return None
    own = _seconds(main)
    return Activity(main[0], own, _seconds(whole) - own)


def _stat(path: str) -> list[str]:
    """Return the fields after the name, which may have spaces and brackets itself."""
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def _seconds(fields: list[str]) -> float:
    """Return user and system time."""
    return (int(fields[11]) + int(fields[12])) * _TICK
