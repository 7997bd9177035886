"""Memory that the master shares with all workers, and with the program that replaces it.

The master makes it before it forks. It is a file without a name, so that an upgrade in place can
hand it on as a descriptor (memfd_create(2)). Raises ValueError for a descriptor of another size.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import tempfile
import weakref
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b

CELL_BYTES = 8
SECRET_CELLS = 4  # 256 bits
KEY_BYTES = 8
KEYS_REMEMBERED = 256  # a client that returns soon costs no second hash


def nameless_file(purpose: str) -> int:
    """Return a descriptor of an empty file that no other process can open by name; lsof(8) shows
    `purpose`.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create(f"superd-{purpose}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    descriptor, path = tempfile.mkstemp()
    os.unlink(path)
    return descriptor


class Memory:
    """Shared cells of unsigned 64 bits; the kernel allocates a page when it is first written to.

    Its size is sealed where the system has seals (F_ADD_SEALS, fcntl(2)): workers have the
    descriptor, to lock it, and one that truncated the file would end every process that has it
    mapped (SIGBUS).

    The cells are new and zero, or those of `descriptor`, which this object then owns.
    """

    def __init__(self, purpose: str, cells: int, descriptor: int | None = None) -> None:
        size = cells * CELL_BYTES
        if descriptor is None:
            descriptor = nameless_file(purpose)
            os.truncate(descriptor, size)
            if hasattr(os, "memfd_create"):
                fixed_size = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fixed_size)
        elif (found := os.fstat(descriptor).st_size) != size:
            raise ValueError(f"the shared memory of the {purpose} has {found} bytes, not {size}")
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor).atexit = False
        self._map = mmap.mmap(descriptor, size)
        self.cells = memoryview(self._map).cast("Q")

    def make_read_only(self) -> None:
        """Map the memory for reading only; this replaces `cells`.

        Once the descriptor is closed this cannot be undone: a mapping of a file that was opened for
        reading only cannot be made writable (mprotect(2)).
        """
        size = len(self._map)
        self.cells.release()
        self._map.close()
        reader = _reopen_for_reading(self.descriptor)
        self._map = mmap.mmap(reader, size, prot=mmap.PROT_READ)
        os.close(reader)
        self.cells = memoryview(self._map).cast("Q")


def _reopen_for_reading(descriptor: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    except OSError:  # without /proc the mapping can be made writable again
        return os.dup(descriptor)


def write_secret(cells: memoryview) -> None:
    """Write a new secret for `key_of` into the first cells."""
    cells[:SECRET_CELLS] = memoryview(secrets.token_bytes(SECRET_CELLS * CELL_BYTES)).cast("Q")


def read_secret(cells: memoryview) -> bytes:
    """Return the secret that `write_secret` has written."""
    return bytes(cells[:SECRET_CELLS])


@lru_cache(maxsize=KEYS_REMEMBERED)
def key_of(secret: bytes, value: bytes) -> int:
    """Return a key of 64 bits, never 0, for a value.

    It is a keyed BLAKE2b hash (RFC 7693): without the secret no client can choose addresses whose
    keys collide, and consecutive addresses have independent keys. Multiply-shift hashing is half as
    expensive, but it spaces consecutive values evenly: for one secret in about 100 the spacing is
    so small that they fill neighbouring slots.
    """
    return int.from_bytes(blake2b(secret + value, digest_size=KEY_BYTES).digest(), "little") or 1


class KeyTable:
    """A hash table of keys in shared cells; 0 is a slot that was never used.

    A key has two buckets, chosen by different bits, and may be in any slot of either. A new key
    takes the lowest free level of the two. This choice keeps the buckets even (Azar and others,
    "Balanced Allocations", 1994): the share of buckets that are filled to a level is about the
    square of the share that are filled to the level below.

    The slots of one level are adjacent, so memory is used level by level. `start` is the number of
    the first slot: a table of cells may be divided among several of these.
    """

    def __init__(self, cells: memoryview, buckets: int, start: int, end: int) -> None:
        self._cells = cells
        self._buckets = buckets
        self._start = start
        self._end = end

    def find(self, key: int) -> int:
        """Return the slot of a key, or -1."""
        cells, buckets, start = self._cells, self._buckets, self._start
        slot = start + key % buckets
        while found := cells[slot]:  # levels are used in order, so 0 ends a bucket
            if found == key:
                return slot
            slot += buckets
            if slot >= self._end:
                break
        slot = start + (key >> 32) % buckets
        while found := cells[slot]:
            if found == key:
                return slot
            slot += buckets
            if slot >= self._end:
                break
        return -1

    def free_slot(self, key: int, is_free: Callable[[int], bool]) -> int:
        """Return the slot for a new key, or -1; `is_free` tells whether a slot may be reused."""
        cells = self._cells
        first, second = key % self._buckets, (key >> 32) % self._buckets
        for level in range(self._start, self._end, self._buckets):
            slot = level + first
            if not cells[slot] or is_free(slot):
                return slot
            slot = level + second
            if not cells[slot] or is_free(slot):
                return slot
        return -1
