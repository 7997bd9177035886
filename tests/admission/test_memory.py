"""Memory that processes share: none of them can take it from the others."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from superd.admission.memory import Memory


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs files that can be sealed")
def test_nobody_can_take_the_memory_away_or_make_more_of_it() -> None:
    memory = Memory("test", 1000)
    memory.cells[999] = 7
    for size in (0, 8000 - 1, 8000 + 1, 1 << 40):
        with pytest.raises(PermissionError):
            os.truncate(memory.descriptor, size)
    assert memory.cells[999] == 7
    assert Memory("test", 1000, os.dup(memory.descriptor)).cells[999] == 7


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memory that /proc names")
def test_who_is_to_write_no_more_can_read_and_cannot_get_leave_to_write() -> None:
    writer = Memory("kept", 1000)
    reader = Memory("given-up", 1000, os.dup(writer.descriptor))
    reader.write_no_more()
    writer.cells[999] = 7
    assert reader.cells[999] == 7
    with pytest.raises(TypeError):
        reader.cells[999] = 8
    mprotect = ctypes.CDLL(None).mprotect
    shared = [line for line in mappings(os.getpid()) if "superd-kept" in line]
    assert sorted(line.split()[1] for line in shared) == ["r--s", "rw-s"]
    for line in shared:
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        rights = mmap.PROT_READ | mmap.PROT_WRITE
        done = mprotect(ctypes.c_void_p(first), ctypes.c_size_t(last - first), rights)
        assert done == (-1 if "r--s" in line else 0)


def mappings(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/maps").read_text().splitlines()
