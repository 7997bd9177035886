"""What limits count in memory that all workers share: rates, and the connections of each source.

Made by the master before it forks. Who reads it to decide and then writes holds its lock, so that
no number of workers exceeds a limit; what a worker has taken stands in a column of its own, so that
the master gives it back when the worker dies. Never raises.

Sources of datagrams may be forged, any number of them: they are counted in every other slot only,
so that there is always room for those of connections.
"""

from __future__ import annotations

import fcntl
import time

from superd.admission.memory import CELLS, Memory, key_of, make_secret, secret_of
from superd.admission.scoreboard import Roster

SLOTS = 1 << 15  # sources that can be counted at a time
PROBES = 16  # slots that one source may be found in
TRIES = 50  # for the lock, which is held for microseconds, until it is tried now and then
NAP = 0.0005  # seconds between these tries
NAPS = 400  # and then its holder has been stopped

_KEY, _DUE, _COUNTS = 0, 1, 2  # columns of a source's slot; one count for each worker's place


class Lock:
    """A lock between processes that the kernel takes back from one that dies (fcntl(2))."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def acquire(self) -> bool:
        """Take the lock; False where another process does not let go of it."""
        for number in range(TRIES + NAPS):
            try:
                fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0 if number < TRIES else NAP)
            else:
                return True
        return False

    def release(self) -> None:
        fcntl.lockf(self.descriptor, fcntl.LOCK_UN)


class Ledger:
    """The rates of services and of the daemon, and a table of sources.

    A rate is kept as the time, in ns of the monotonic clock, at which its next event is due.
    `descriptor` is that of an earlier one's memory, of the same roster.
    """

    def __init__(self, roster: Roster, descriptor: int | None = None) -> None:
        self._roster = roster
        self._width = _COUNTS + roster.places
        first = CELLS + roster.capacity
        self.memory = Memory("ledger", first + SLOTS * self._width, descriptor)
        self.lock = Lock(self.memory.descriptor)
        if descriptor is None:
            make_secret(self.memory.cells)
        self._rates = self.memory.cells[CELLS:first]
        self._sources = self.memory.cells[first:]

    def rate(self, scope: str) -> memoryview:
        """Return the one cell that tells when the next event of a service is due."""
        number = self._roster.number(scope)
        return self._rates[number : number + 1]

    def sources(self, scope: str, place: int) -> Sources:
        """Return the sources of a service, or of the daemon, as the worker at `place` has them."""
        number = self._roster.number(scope)
        factor, step = secret_of(self.memory.cells)
        return Sources(self._sources, self._width, factor, step * (number + 1), place)

    def vacate(self, place: int) -> None:
        """Give back what the worker at `place` had taken; it has gone."""
        for slot in range(0, SLOTS * self._width, self._width):
            if self._sources[slot + _KEY] and self._sources[slot + _COUNTS + place]:
                self._sources[slot + _COUNTS + place] = 0


class Sources:
    """The sources of one scope: how many connections each has, and when its next one is due.

    A slot is found by a secret `factor` and `offset`: see superd.admission.memory.
    """

    def __init__(self, cells: memoryview, width: int, factor: int, offset: int, place: int) -> None:
        self._cells = cells
        self._width = width
        self._factor = factor
        self._offset = offset
        self._column = _COUNTS + place

    def slot(self, source: bytes, now: int, *, may_be_forged: bool) -> int:
        """Return the slot of a source, an unused one where it has none; -1 where all are in use
        that it may have.
        """
        key = key_of(int.from_bytes(source, "big"), self._factor, self._offset)
        cells, width = self._cells, self._width
        slot = key % SLOTS * width
        if cells[slot] == key:
            return slot
        return self._found_or_new(key, now, may_be_forged)

    def _found_or_new(self, key: int, now: int, may_be_forged: bool) -> int:
        cells, width = self._cells, self._width
        unused = -1
        for probe in range(PROBES):
            number = (key + probe) % SLOTS
            slot = number * width
            found = cells[slot]
            if found == key:
                return slot
            is_for_all = number % 2 == 0
            may_take = unused < 0 and (is_for_all or not may_be_forged)
            if may_take and (not found or self._is_unused(slot, now)):
                unused = slot
            if not found and is_for_all:  # the others are passed over by who may be forged
                break
        if unused >= 0:
            cells[unused + _DUE] = 0
            cells[unused] = key
        return unused

    def _is_unused(self, slot: int, now: int) -> bool:
        return self._cells[slot + _DUE] <= now and not self.count(slot)

    def count(self, slot: int) -> int:
        """Return how many connections the source has in all workers."""
        return sum(self._cells[slot + _COUNTS : slot + self._width])

    def due(self, slot: int) -> int:
        return self._cells[slot + _DUE]

    def set_due(self, slot: int, due: int) -> None:
        self._cells[slot + _DUE] = due

    def enter(self, slot: int) -> None:
        """Count a connection of this worker."""
        self._cells[slot + self._column] += 1

    def leave(self, slot: int) -> None:
        """Count it no more. Needs no lock: nobody else writes this cell, and while it is not 0
        the slot stays the source's.
        """
        self._cells[slot + self._column] -= 1
