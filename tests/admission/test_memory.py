"""Shared memory, and the hash table in it."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
from pathlib import Path

import pytest

from superd.admission import bans, ledger
from superd.admission.memory import KeyTable, Memory, key_of


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs files that can be sealed")
def test_no_process_can_change_the_size_of_shared_memory() -> None:
    memory = Memory("test", 1000)
    memory.cells[999] = 7
    for size in (0, 8000 - 1, 8000 + 1, 1 << 40):
        with pytest.raises(PermissionError):
            os.truncate(memory.descriptor, size)
    assert memory.cells[999] == 7
    assert Memory("test", 1000, os.dup(memory.descriptor)).cells[999] == 7


def test_shared_memory_of_another_size_is_rejected() -> None:
    memory = Memory("test", 1000)
    with pytest.raises(ValueError, match="shared memory of the test has 8000 bytes, not 8008"):
        Memory("test", 1001, os.dup(memory.descriptor))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memory that /proc names")
def test_a_read_only_mapping_cannot_be_made_writable() -> None:
    writer = Memory("kept", 1000)
    reader = Memory("given-up", 1000, os.dup(writer.descriptor))
    reader.make_read_only()
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


# The hash table. With independent keys, one bucket in 1,000 has a key on level 4 of 0 to 7, and the
# share of buckets with a key on the next level is about the square of the share before. Consecutive
# values, such as the addresses of a network, must not fill it more than random ones.

TABLES = {
    "bans": (bans.BUCKETS, bans.BUCKET_SLOTS, bans.MAX_BANS),
    "sources of connections": (ledger.BUCKETS, ledger.BUCKET_SLOTS // 2, ledger.MAX_SOURCES),
}


@pytest.mark.parametrize("values", ["consecutive", "random"])
@pytest.mark.parametrize(("buckets", "levels", "max_keys"), TABLES.values(), ids=TABLES.keys())
def test_a_table_with_the_maximum_of_keys_has_its_last_level_free(
    buckets: int, levels: int, max_keys: int, values: str
) -> None:
    for seed in range(5):
        cells = memoryview(bytearray(8 * buckets * levels)).cast("Q")
        table, secret = KeyTable(cells, buckets, 0, len(cells)), os.urandom(32)
        wanted = (
            range(max_keys)
            if values == "consecutive"
            else random.Random(seed).sample(range(1 << 32), max_keys)
        )
        keys = [key_of(secret, value.to_bytes(4, "big")) for value in wanted]
        for key in keys:
            assert table.find(key) < 0
            slot = table.free_slot(key, lambda slot: False)
            assert slot < (levels - 1) * buckets
            cells[slot] = key
        for key in keys:
            assert cells[table.find(key)] == key


def test_a_table_keeps_its_last_level_free_while_keys_are_added_and_removed() -> None:
    buckets, levels, max_keys = TABLES["sources of connections"]
    cells = memoryview(bytearray(8 * buckets * levels)).cast("Q")
    table, in_use = KeyTable(cells, buckets, 0, len(cells)), set[int]()
    rng = random.Random(1)
    slots: list[int] = []
    for number in range(10 * max_keys):
        if number >= max_keys:
            in_use.remove(slots.pop(rng.randrange(max_keys)))
        key = rng.getrandbits(64) or 1
        slot = table.free_slot(key, lambda slot: slot not in in_use)
        assert slot < (levels - 1) * buckets
        cells[slot] = key
        in_use.add(slot)
        slots.append(slot)


@pytest.mark.parametrize("key", [1, 3 << 32 | 5, 7 << 32 | 7, (1 << 64) - 1])
def test_a_key_is_found_in_each_of_its_possible_slots(key: int) -> None:
    cells = memoryview(bytearray(8 * 48)).cast("Q")
    table = KeyTable(cells, 8, 16, 48)
    slots = []
    while (slot := table.free_slot(key, lambda slot: False)) >= 0:
        assert table.find(key) == -1
        cells[slot] = key
        assert table.find(key) == slot
        cells[slot] = 9
        slots.append(slot)
    assert sorted(slots) == [
        slot for slot in range(16, 48) if slot % 8 in (key % 8, (key >> 32) % 8)
    ]
    assert not any(cells[:16])
