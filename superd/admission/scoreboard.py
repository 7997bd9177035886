"""Counters in memory that the master and all workers share.

The master makes it before it forks. Each worker writes only to its own row, so no lock is needed;
readers add the rows up. The counters survive the end of a worker, and reloads. Raises NoRoom where
a reload brings more services than there is memory for.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from superd.admission.memory import Memory
from superd.admission.refusals import Refusal
from superd.errors import SuperdError


class Count(enum.IntEnum):
    """The first columns of a service. One column for each refusal follows, and then one for each
    range of durations.
    """

    ACCEPTED = 0
    ACTIVE = 1
    DATAGRAMS = 2
    ANSWERS = 3
    ERRORS = 4
    BYTES_IN = 5
    BYTES_OUT = 6
    WAITS = 7  # times that accepting was paused, or a connection kept waiting, at a limit


REFUSALS = tuple(Refusal)
# upper bounds of the ranges of durations, in seconds; one more column counts what lasted longer
DURATIONS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0)
_FIRST_DURATION = len(Count) + len(REFUSALS)
# these two are used for ALL only: lines that a worker could not send to the master, and when the
# worker's loop turns next, in ns of the monotonic clock
LOST = _FIRST_DURATION + len(DURATIONS) + 1
DUE = LOST + 1
_COLUMNS = DUE + 1

_COUNTED = (
    *(count.name.lower().replace("_", "-") for count in Count),
    *(f"refused-{refusal.value}" for refusal in REFUSALS),
)

MIN_SERVICES = 256
MIN_WORKER_SLOTS = 32
SPARE_FACTOR = 4  # reloads may bring more services and workers than superd starts with

ALL = ""  # the name under which the daemon, all services together, is counted


class NoRoom(SuperdError):
    """There are more services or workers than the shared memory has room for."""


class Roster:
    """The numbers of the services, and the size of the tables in shared memory: `capacity` services
    and `worker_slots` workers.

    A service keeps its number over reloads and upgrades; the daemon has number 0.
    """

    def __init__(self, capacity: int, worker_slots: int, numbers: Mapping[str, int]) -> None:
        self.capacity = capacity
        self.worker_slots = worker_slots
        self.numbers = dict(numbers)

    @classmethod
    def of(cls, services: Sequence[str], workers: int) -> Roster:
        """Return a new roster for these services and so many workers, with room for more."""
        capacity = max(MIN_SERVICES, SPARE_FACTOR * len(services))
        roster = cls(capacity, max(MIN_WORKER_SLOTS, SPARE_FACTOR * workers), {ALL: 0})
        roster.add(services)
        return roster

    def add(self, services: Sequence[str]) -> None:
        """Give each new service a number; NoRoom beyond the capacity."""
        new = [name for name in services if name not in self.numbers]
        if len(self.numbers) + len(new) > self.capacity:
            raise NoRoom(
                f"there is room for {self.capacity - 1} services; restart superd to have more"
            )
        self.numbers |= {name: len(self.numbers) + n for n, name in enumerate(new)}

    def number(self, service: str) -> int:
        return self.numbers[service]

    def __len__(self) -> int:
        return len(self.numbers)


def columns() -> list[str]:
    """Return what each column counts. Two programs can share the memory only if these are equal."""
    return [*_COUNTED, *(f"up to {seconds} s" for seconds in DURATIONS), "longer", "lost", "due"]


class Sums(NamedTuple):
    """The sums of one service over all workers, in the order of Count, REFUSALS and DURATIONS; the
    last duration is "longer".
    """

    counts: list[int]
    refused: list[int]
    durations: list[int]

    @property
    def by_name(self) -> dict[str, int]:
        """Counts and refusals by name; a refusal is `refused-REASON`."""
        return dict(zip(_COUNTED, self.counts + self.refused, strict=True))


class Scoreboard:
    """A table of unsigned 64-bit counters: a row for each worker, with all columns of each service.

    `descriptor` is that of the memory of an earlier scoreboard with the same roster.
    """

    def __init__(self, roster: Roster, descriptor: int | None = None) -> None:
        self._roster = roster
        self._width = roster.capacity * _COLUMNS
        self.memory = Memory("scoreboard", roster.worker_slots * self._width, descriptor)
        self._cells = self.memory.cells

    def row(self, worker_slot: int, service: str) -> memoryview:
        """Return the writable counters of one service in one worker.

        They are indexed by `Count`, `refusal_column`, `duration_column` and `LOST`.
        """
        start = worker_slot * self._width + self._roster.number(service) * _COLUMNS
        return self._cells[start : start + _COLUMNS]

    def due(self, worker_slot: int) -> memoryview:
        """Return the one cell in which a worker writes when its loop turns next."""
        start = worker_slot * self._width + DUE
        return self._cells[start : start + 1]

    def vacate(self, worker_slot: int) -> int:
        """Clear what a dead worker had in progress; return how many connections it had."""
        start = worker_slot * self._width + Count.ACTIVE
        end = worker_slot * self._width + len(self._roster) * _COLUMNS
        lost = self._cells[start]  # the daemon is service 0
        for cell in range(start, end, _COLUMNS):
            self._cells[cell] = 0
        return lost

    def active(self, service: str) -> memoryview:
        """Return the cells with the numbers of a service's connections, one for each worker."""
        return self._cells[self._roster.number(service) * _COLUMNS + Count.ACTIVE :: self._width]

    def accepted(self, service: str) -> int:
        """Return how many connections and datagrams a service has had, in all workers."""
        start = self._roster.number(service) * _COLUMNS
        of_both = (Count.ACCEPTED, Count.DATAGRAMS)
        return sum(sum(self._cells[start + count :: self._width]) for count in of_both)

    def totals(self, service: str) -> dict[str, int]:
        """Return the sums over all workers by name; a refusal is `refused-REASON`."""
        return self.sums(service).by_name

    def sums(self, service: str) -> Sums:
        """Return all sums over all workers."""
        start = self._roster.number(service) * _COLUMNS
        sums = [sum(self._cells[start + n :: self._width]) for n in range(_COLUMNS)]
        first = len(Count)
        return Sums(sums[:first], sums[first:_FIRST_DURATION], sums[_FIRST_DURATION:LOST])

    def lost(self) -> int:
        """Return how many lines of log and records the workers could not send to the master."""
        first = self._roster.number(ALL) * _COLUMNS + LOST
        return sum(self._cells[first :: self._width])


def refusal_column(refusal: Refusal) -> int:
    """Return the column that counts a refusal."""
    return _REFUSAL_COLUMNS[refusal]


_REFUSAL_COLUMNS = {refusal: len(Count) + n for n, refusal in enumerate(REFUSALS)}


def duration_column(seconds: float) -> int:
    """Return the column that counts connections of this duration."""
    return _FIRST_DURATION + bisect_left(DURATIONS, seconds)
