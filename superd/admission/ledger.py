"""What limits count in memory that all workers share: rates, and the connections of each source.

The master makes it before it forks. A worker holds the lock from reading to writing, so limits hold
however many workers run. Each worker counts in a column of its own, so that the master can give
back what a worker had taken when it died. Never raises.

The sources of datagrams may be forged, in any number. They are counted in one half of the table
only, so they never take the room that sources of connections need.
"""

from __future__ import annotations

import fcntl
import time

from superd.admission.memory import (
    SECRET_CELLS,
    KeyTable,
    Memory,
    key_of,
    read_secret,
    write_secret,
)
from superd.admission.scoreboard import Roster

BUCKETS = 1 << 12
BUCKET_SLOTS = 16
SLOTS = BUCKETS * BUCKET_SLOTS
FIRST_SHARED_SLOT = SLOTS // 2  # from here on sources of datagrams are counted too
MAX_SOURCES = 10_000
# MAX_SOURCES sources of connections are counted at a time, and as many of datagrams, beyond any
# doubt: with so many in use, less than one bucket in 10**13 has 7 of its 8 slots taken, so the
# probability that the 16 slots of one more source are all taken is below 10**-26. Beyond that,
# sources are refused only where their slots are taken.

LOCK_YIELDS = 50  # attempts that only yield the processor: the lock is held for microseconds
LOCK_NAPS = 400  # and then attempts that sleep; after these the holder is assumed to be stopped
LOCK_NAP = 0.0005  # seconds


class Lock:
    """A lock between processes that the kernel releases when its holder dies (fcntl(2)).

    It locks one byte of a file, at an offset that may lie beyond the file's end.
    """

    def __init__(self, descriptor: int, offset: int = 0) -> None:
        self.descriptor = descriptor
        self._offset = offset

    def acquire(self) -> bool:
        """Take the lock; False where another process does not release it within 0.2 s."""
        for attempt in range(LOCK_YIELDS + LOCK_NAPS):
            if self.acquire_now():
                return True
            time.sleep(0 if attempt < LOCK_YIELDS else LOCK_NAP)
        return False

    def acquire_now(self) -> bool:
        """Take the lock, unless another process has it."""
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._offset)
        except OSError:
            return False
        return True

    def release(self) -> None:
        fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, self._offset)


class Ledger:
    """The rates of the services and of the daemon, and a table of sources.

    A rate is kept as the time, in ns of the monotonic clock, at which its next event is due.
    `descriptor` is that of the memory of an earlier ledger with the same roster.
    """

    def __init__(self, roster: Roster, descriptor: int | None = None) -> None:
        # cells: the secret, the rates, and of the sources the keys, the due times and the counts
        self._roster = roster
        keys = SECRET_CELLS + roster.capacity
        due, counts = keys + SLOTS, keys + 2 * SLOTS
        size = counts + SLOTS * roster.worker_slots
        self.memory = Memory("ledger", size, descriptor)
        self.lock = Lock(self.memory.descriptor)
        cells = self.memory.cells
        if descriptor is None:
            write_secret(cells)
        self._rates = cells[SECRET_CELLS:keys]
        self.keys = cells[keys:due]
        self.due = cells[due:counts]
        self.counts = cells[counts:]
        self.worker_slots = roster.worker_slots

    def rate(self, scope: str) -> memoryview:
        """Return the one cell that holds when the next event of a service is due."""
        number = self._roster.number(scope)
        return self._rates[number : number + 1]

    def sources(self, scope: str, worker_slot: int) -> Sources:
        """Return the sources of a service, or of the daemon, for the worker in a slot."""
        secret = read_secret(self.memory.cells) + self._roster.number(scope).to_bytes(4, "big")
        return Sources(self, secret, worker_slot)

    def vacate(self, worker_slot: int) -> None:
        """Give back what a dead worker had taken."""
        column = self.counts[worker_slot :: self.worker_slots]
        for slot, key in enumerate(self.keys.tolist()):
            if key and column[slot]:
                column[slot] = 0


class Sources:
    """The sources of one scope: how many connections each has, and when its next one is due."""

    def __init__(self, ledger: Ledger, secret: bytes, worker_slot: int) -> None:
        self._secret = secret
        self._keys = ledger.keys
        self._due = ledger.due
        self._counts = ledger.counts
        self._reserved = KeyTable(self._keys, BUCKETS, 0, FIRST_SHARED_SLOT)
        self._shared = KeyTable(self._keys, BUCKETS, FIRST_SHARED_SLOT, SLOTS)
        self._workers = ledger.worker_slots
        self._column = worker_slot

    def slot(self, source: bytes, now: int, *, may_be_forged: bool) -> int:
        """Return the slot of a source, which may be new; -1 where it can have none."""
        key = key_of(self._secret, source)
        slot = self._reserved.find(key)
        if slot < 0:
            slot = self._shared.find(key)
        if slot < 0:
            slot = self._new_slot(key, now, may_be_forged)
        return slot

    def _new_slot(self, key: int, now: int, may_be_forged: bool) -> int:
        def is_unused(slot: int) -> bool:
            return self._due[slot] <= now and not self.count(slot)

        slot = -1 if may_be_forged else self._reserved.free_slot(key, is_unused)
        if slot < 0:
            slot = self._shared.free_slot(key, is_unused)
        if slot >= 0:
            self._due[slot] = 0
            self._keys[slot] = key
        return slot

    def count(self, slot: int) -> int:
        """Return how many connections the source has in all workers."""
        return sum(self._counts[slot * self._workers : (slot + 1) * self._workers])

    def due(self, slot: int) -> int:
        return self._due[slot]

    def set_due(self, slot: int, due: int) -> None:
        self._due[slot] = due

    def enter(self, slot: int) -> None:
        """Count a connection of this worker."""
        self._counts[slot * self._workers + self._column] += 1

    def leave(self, slot: int) -> None:
        """Stop counting it. This needs no lock: only this worker writes to the cell, and the source
        keeps its slot until the count is 0.
        """
        self._counts[slot * self._workers + self._column] -= 1
