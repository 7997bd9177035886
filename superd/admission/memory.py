"""Memory that the master shares with all workers, and with the program that takes over from it.

Made by the master before it forks. It is a file without a name, so an upgrade in place passes it on
as a descriptor (memfd_create(2)). Raises ValueError for a descriptor that is something else.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import tempfile
import weakref

CELL = 8
BITS = 256  # of each of the two secret numbers
CELLS = 2 * BITS // 8 // CELL  # that they take
_64_BITS = 0xFFFF_FFFF_FFFF_FFFF


def nameless_file(purpose: str) -> int:
    """Return a descriptor of an empty file that nobody else can open; `purpose` is for lsof(8)."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(f"superd-{purpose}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    descriptor, path = tempfile.mkstemp()
    os.unlink(path)
    return descriptor


class Memory:
    """Shared cells of unsigned 64 bits; the kernel gives a page when it is first written to.

    Where there are seals (F_ADD_SEALS in fcntl(2)) its size is fixed: a worker that has the
    descriptor, to lock it, could end all others and the master by taking the memory away (SIGBUS).

    Made anew, full of zeros, or found where `descriptor` has it, which belongs to it then.
    """

    def __init__(self, purpose: str, cells: int, descriptor: int | None = None) -> None:
        size = cells * CELL
        if descriptor is None:
            descriptor = nameless_file(purpose)
            os.truncate(descriptor, size)
            if hasattr(os, "memfd_create"):
                fixed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fixed)
        elif os.fstat(descriptor).st_size != size:
            raise ValueError(f"the memory of the {purpose} has another size")
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor).atexit = False
        self._map = mmap.mmap(descriptor, size)
        self.cells = memoryview(self._map).cast("Q")

    def write_no_more(self) -> None:
        """Have this process read only, for good once it has closed the descriptor: what was opened
        for reading alone cannot be made writable later (mprotect(2)). The old cells are gone.
        """
        size = len(self._map)
        self.cells.release()
        self._map.close()
        reader = _opened_for_reading(self.descriptor)
        self._map = mmap.mmap(reader, size, prot=mmap.PROT_READ)
        os.close(reader)
        self.cells = memoryview(self._map).cast("Q")


def _opened_for_reading(descriptor: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    except OSError:  # without /proc it is not for good
        return os.dup(descriptor)


def make_secret(cells: memoryview) -> None:
    """Fill the cells of a secret."""
    cells[:CELLS] = memoryview(secrets.token_bytes(CELLS * CELL)).cast("Q")


def secret_of(cells: memoryview) -> tuple[int, int]:
    """Return the two numbers: a factor, and a step for what is to be found in other slots."""
    half = CELLS // 2
    factor, step = cells[:half], cells[half:CELLS]
    return int.from_bytes(factor, "little"), int.from_bytes(step, "little")


def key_of(value: int, factor: int, offset: int) -> int:
    """Return a number of 64 bits that is not 0, for a value of up to 192: the highest bits of their
    product (multiply-shift hashing), so nobody can choose values that crowd together.
    """
    return (factor * value + offset) >> BITS - 64 & _64_BITS or 1
