"""Bounded reading of what strangers sent: numbers, vectors and text, never beyond what is there.

Each read moves on or raises, so whoever reads in a loop comes to an end. Raises nothing else than
`Unreadable`.
"""

from __future__ import annotations

import struct
from typing import Literal

Details = dict[str, str]

LONGEST = 256  # characters of a value that is recorded


class Unreadable(Exception):
    """It does not go on as it would have to."""


class Malformed(Unreadable):
    """No bytes that follow could make it right."""


class Short(Unreadable):
    """It ends before what it announced."""


def text(data: bytes) -> str:
    """Return what can be recorded of some bytes: the beginning, as raw text, control characters
    and all.
    """
    return data[:LONGEST].decode("utf-8", "backslashreplace")[:LONGEST]


def require(condition: bool) -> None:
    if not condition:
        raise Malformed


class Reader:
    """A place in a message that announces `size` bytes, of which `data` is the beginning; or in a
    stream, which may go on.
    """

    def __init__(self, data: bytes, size: int | None = None) -> None:
        self._data = data
        self._is_open = size is None
        self._size = len(data) if size is None else size
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes are still announced, whether or not they are there; of a stream, how many
        are there.
        """
        return max(self._size - self._at, 0)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > self._size and not self._is_open:
            raise Malformed
        if end > len(self._data):
            raise Short
        start, self._at = self._at, end
        return self._data[start:end]

    def number(self, width: int, order: Literal["big", "little"] = "big") -> int:
        return int.from_bytes(self.take(width), order)

    def pairs(self) -> list[int]:
        """Read all that is left as numbers of two bytes, as far as they are there."""
        require(self.left % 2 == 0)
        there = self.rest()
        return list(struct.unpack_from(f"!{len(there) // 2}H", there))

    def part(self, size: int) -> Reader:
        """Go past `size` bytes, which may not all be there, and return a reader of them."""
        require(size <= self.left or self._is_open)
        start, self._at = self._at, self._at + size
        return Reader(self._data[start : self._at], size)

    def vector(self, width: int) -> Reader:
        """Read a length of `width` bytes, and return a reader of what it announces."""
        return self.part(self.number(width))

    def varint(self) -> int:
        """Read a number in groups of seven bits, the least first, of four bytes at most or five."""
        value = 0
        for shift in range(0, 35, 7):
            one = self.number(1)
            value |= (one & 0x7F) << shift
            if one < 0x80:
                return value
        raise Malformed

    def until(self, end: bytes, most: int = 1024) -> bytes:
        """Read what precedes an end mark, and the mark."""
        found = self._data.find(end, self._at, self._at + most + len(end))
        if found < 0:
            raise Malformed if len(self._data) - self._at >= most + len(end) else Short
        start, self._at = self._at, found + len(end)
        return self._data[start:found]

    def rest(self) -> bytes:
        """Read what is there."""
        start, self._at = self._at, self._size
        return self._data[start:]

    def ber(self) -> tuple[int, Reader]:
        """Read the tag and the length of a BER element, and return a reader of its contents."""
        tag, length = self.take(2)
        if length & 0x80:
            require(0x81 <= length <= 0x84)
            length = self.number(length & 0x7F)
        return tag, self.part(length)
