"""Memory that processes share: none of them can take it from the others."""

from __future__ import annotations

import os

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
