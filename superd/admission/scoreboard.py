"""Counters in memory that the master and all workers share.

Made by the master before it forks. Each worker writes only its own row, so no lock is needed;
readers add the rows up. Never raises.
"""

from __future__ import annotations

import enum
import mmap
from collections.abc import Sequence

from superd.admission.refusals import Refusal


class Count(enum.IntEnum):
    """What is counted for each service. Refusals follow, one column each."""

    ACCEPTED = 0
    ACTIVE = 1
    DATAGRAMS = 2
    ANSWERS = 3
    ERRORS = 4
    BYTES_IN = 5
    BYTES_OUT = 6


REFUSALS = tuple(Refusal)
_COLUMNS = len(Count) + len(REFUSALS)
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

        Indexed by `Count`, and by `refusal_column` for refusals.
        """
        start = place * self._width + self.services.index(service) * _COLUMNS
        return self._cells[start : start + _COLUMNS]

    def vacate(self, place: int) -> None:
        """Note that the worker at `place` has gone, and its connections with it."""
        for service in self.services:
            self.row(place, service)[Count.ACTIVE] = 0

    def totals(self, service: str) -> dict[str, int]:
        """Return the sums over all workers by name; refusals as `refused-REASON`."""
        start = self.services.index(service) * _COLUMNS
        sums = [
            sum(self._cells[start + column :: self._width] if self._width else ())
            for column in range(_COLUMNS)
        ]
        names = [count.name.lower().replace("_", "-") for count in Count]
        names += [f"refused-{refusal.value}" for refusal in REFUSALS]
        return dict(zip(names, sums, strict=True))


def refusal_column(refusal: Refusal) -> int:
    """Return where in a row a refusal is counted."""
    return len(Count) + REFUSALS.index(refusal)
