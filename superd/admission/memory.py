"""Memory that the master shares with all workers, and with the program that takes over from it.

Made by the master before it forks. It is a file without a name, so an upgrade in place passes it on
as a descriptor (memfd_create(2)). Raises ValueError for a descriptor that is something else.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
import weakref

CELL = 8


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
