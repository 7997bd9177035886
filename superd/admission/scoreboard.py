"""Counters in memory that the master and all workers share.

Made by the master before it forks. Each worker writes only its own row, so no lock is needed;
readers add the rows up. What is counted outlives workers and reloads. Raises NoRoom where a
reload brings more services than there is memory for.
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
    """What is counted for each service. Refusals follow, one column each, and then how many
    connections lasted how long.
    """

    ACCEPTED = 0
    ACTIVE = 1
    DATAGRAMS = 2
    ANSWERS = 3
    ERRORS = 4
    BYTES_IN = 5
    BYTES_OUT = 6
    WAITS = 7  # times that clients were made to wait at a limit


REFUSALS = tuple(Refusal)
DURATIONS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0)  # seconds; the last is beyond
_FIRST_DURATION = len(Count) + len(REFUSALS)
LOST = _FIRST_DURATION + len(DURATIONS) + 1  # lines that did not get to the master; of ALL only
DUE = LOST + 1  # when a worker's loop turns next, in ns of the monotonic clock; of ALL only
_COLUMNS = DUE + 1

_COUNTED = (
    *(count.name.lower().replace("_", "-") for count in Count),
    *(f"refused-{refusal.value}" for refusal in REFUSALS),
)

LEAST_SERVICES = 256
LEAST_PLACES = 32
SPARE = 4  # times as much as is needed at the start: reloads may bring more

ALL = ""  # the daemon: all services together


class NoRoom(SuperdError):
    """There are more services or workers than the shared memory has room for."""


class Roster:
    """Which services and how many places there is room for in shared memory.

    A service keeps its number for as long as the master lives, over reloads and upgrades too; so
    does the daemon, which is number 0.
    """

    def __init__(self, capacity: int, places: int, numbers: Mapping[str, int]) -> None:
        self.capacity = capacity
        self.places = places
        self.numbers = dict(numbers)

    @classmethod
    def of(cls, services: Sequence[str], places: int) -> Roster:
        """Return a new one for these services and so many places, with room for more."""
        roster = cls(
            max(LEAST_SERVICES, SPARE * len(services)), max(LEAST_PLACES, SPARE * places), {ALL: 0}
        )
        roster.add(services)
        return roster

    def add(self, services: Sequence[str]) -> None:
        """Give each service that is new a number."""
        new = [name for name in services if name not in self.numbers]
        if len(self.numbers) + len(new) > self.capacity:
            raise NoRoom(f"there is room for {self.capacity - 1} services; a restart makes more")
        self.numbers |= {name: len(self.numbers) + n for n, name in enumerate(new)}

    def number(self, service: str) -> int:
        return self.numbers[service]

    def __len__(self) -> int:
        return len(self.numbers)


def columns() -> list[str]:
    """Return what each column of the scoreboard counts: two that differ cannot share memory."""
    return [*_COUNTED, *(f"up to {seconds} s" for seconds in DURATIONS), "longer", "lost", "due"]


class Sums(NamedTuple):
    """What was counted for one service: by Count, by REFUSALS, and by DURATIONS and beyond."""

    counts: list[int]
    refused: list[int]
    durations: list[int]

    @property
    def by_name(self) -> dict[str, int]:
        """Counts and refusals by name; the latter as `refused-REASON`."""
        return dict(zip(_COUNTED, self.counts + self.refused, strict=True))


class Scoreboard:
    """A table of unsigned 64-bit counters: a row for each worker's place, a cell per service.

    `descriptor` is that of an earlier one's memory, of the same roster.
    """

    def __init__(self, roster: Roster, descriptor: int | None = None) -> None:
        self._roster = roster
        self._width = roster.capacity * _COLUMNS
        self.memory = Memory("scoreboard", roster.places * self._width, descriptor)
        self._cells = self.memory.cells

    def row(self, place: int, service: str) -> memoryview:
        """Return the writable counters of one service at one worker's place.

        Indexed by `Count`, by what `refusal_column` and `duration_column` tell, and by `LOST`.
        """
        start = place * self._width + self._roster.number(service) * _COLUMNS
        return self._cells[start : start + _COLUMNS]

    def due(self, place: int) -> memoryview:
        """Return the one cell in which the worker at `place` says when its loop turns next."""
        start = place * self._width + DUE
        return self._cells[start : start + 1]

    def vacate(self, place: int) -> int:
        """Note that the worker at `place` has gone; return how many connections went with it."""
        start = place * self._width + Count.ACTIVE
        end = place * self._width + len(self._roster) * _COLUMNS
        lost = self._cells[start]  # of the daemon
        for cell in range(start, end, _COLUMNS):
            self._cells[cell] = 0
        return lost

    def active(self, service: str) -> memoryview:
        """Return the cells with the numbers of connections that a service has, one a place."""
        return self._cells[self._roster.number(service) * _COLUMNS + Count.ACTIVE :: self._width]

    def accepted(self, service: str) -> int:
        """Return how many connections and datagrams a service has had, in all places."""
        start = self._roster.number(service) * _COLUMNS
        of_both = (Count.ACCEPTED, Count.DATAGRAMS)
        return sum(sum(self._cells[start + count :: self._width]) for count in of_both)

    def totals(self, service: str) -> dict[str, int]:
        """Return the sums over all workers by name; refusals as `refused-REASON`."""
        return self.sums(service).by_name

    def sums(self, service: str) -> Sums:
        """Return all sums over all workers."""
        start = self._roster.number(service) * _COLUMNS
        sums = [sum(self._cells[start + n :: self._width]) for n in range(_COLUMNS)]
        first = len(Count)
        return Sums(sums[:first], sums[first:_FIRST_DURATION], sums[_FIRST_DURATION:LOST])

    def lost(self) -> int:
        """Return how many lines of log and records workers could not send to the master."""
        first = self._roster.number(ALL) * _COLUMNS + LOST
        return sum(self._cells[first :: self._width])


def refusal_column(refusal: Refusal) -> int:
    """Return where in a row a refusal is counted."""
    return _REFUSAL_COLUMNS[refusal]


_REFUSAL_COLUMNS = {refusal: len(Count) + n for n, refusal in enumerate(REFUSALS)}


def duration_column(seconds: float) -> int:
    """Return where in a row a connection of this duration is counted."""
    return _FIRST_DURATION + bisect_left(DURATIONS, seconds)
