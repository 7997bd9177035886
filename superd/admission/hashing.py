"""Numbers for values that somebody else may choose, such as addresses, by which they are found in
memory that is shared.

Runs in every process that has the memory. The secret stands in that memory, as the program after an
upgrade has to come to the same numbers: Python's own hash has another seed there. Never raises.
"""

from __future__ import annotations

import secrets

from superd.admission.memory import CELL

BITS = 256  # of each of the two secret numbers
CELLS = 2 * BITS // 8 // CELL  # that they take
_64_BITS = 0xFFFF_FFFF_FFFF_FFFF


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
