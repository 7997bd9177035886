"""Counters in memory that the master and all workers share.

Made by the master before it forks. Each worker writes only its own row, so no lock is needed;
readers add the rows up. Never raises.
"""

from __future__ import annotations

import enum
import mmap
from bisect import bisect_left
from collections.abc import Sequence

from superd.admission.refusals import Refusal


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
_COLUMNS = _FIRST_DURATION + len(DURATIONS) + 1
_CELL = 8


class Scoreboard:
    """A table of unsigned 64-bit counters: a row for each worker's place, a cell per service."""

    def __init__(self, services: Sequence[str], places: int) -> None:
        self.services = tuple(services)
        self._width = len(self.services) * _COLUMNS
        self._memory = mmap.mmap(-1, max(1, places * self._width) * _CELL)
        self._cells = memoryview(self._memory).cast("Q")

    def row(self, place: int, service: str) -> memoryview:
        """Return the writable counters of one service at one worker's place.

        Indexed by `Count`, and by what `refusal_column` and `duration_column` tell.
        """
        start = place * self._width + self.services.index(service) * _COLUMNS
        return self._cells[start : start + _COLUMNS]

    def vacate(self, place: int) -> int:
        """Note that the worker at `place` has gone; return how many connections went with it."""
        lost = 0
        for service in self.services:
            row = self.row(place, service)
            lost += row[Count.ACTIVE]
            row[Count.ACTIVE] = 0
        return lost

    def active(self, service: str) -> memoryview:
        """Return the cells with the numbers of connections that a service has, one a worker."""
        return self._cells[self.services.index(service) * _COLUMNS + Count.ACTIVE :: self._width]

    def all_active(self) -> memoryview:
        """Return those of all services."""
        return self._cells[Count.ACTIVE :: _COLUMNS]

    def totals(self, service: str) -> dict[str, int]:
        """Return the sums over all workers by name; refusals as `refused-REASON`."""
        sums = self._sums(service)[:_FIRST_DURATION]
        names = [count.name.lower().replace("_", "-") for count in Count]
        names += [f"refused-{refusal.value}" for refusal in REFUSALS]
        return dict(zip(names, sums, strict=True))

    def durations(self, service: str) -> list[int]:
        """Return how many connections lasted up to each of DURATIONS, and longer than the last."""
        return self._sums(service)[_FIRST_DURATION:]

    def _sums(self, service: str) -> list[int]:
        start = self.services.index(service) * _COLUMNS
        return [sum(self._cells[start + n :: self._width]) for n in range(_COLUMNS)]


def refusal_column(refusal: Refusal) -> int:
    """Return where in a row a refusal is counted."""
    return _REFUSAL_COLUMNS[refusal]


_REFUSAL_COLUMNS = {refusal: len(Count) + n for n, refusal in enumerate(REFUSALS)}


def duration_column(seconds: float) -> int:
    """Return where in a row a connection of this duration is counted."""
    return _FIRST_DURATION + bisect_left(DURATIONS, seconds)
