"""Bounded reading of untrusted bytes: numbers, vectors and text, never beyond their end.

Each read advances or raises, so a loop of reads ends. Raises nothing but `Unreadable`.
"""

from __future__ import annotations

import struct
from typing import Literal

Details = dict[str, str]

MAX_VALUE_LENGTH = 256  # characters of a recorded value


class Unreadable(Exception):
    """The data is not a message of this protocol, or not enough of one."""


class Malformed(Unreadable):
    """The data breaks the protocol, whatever may follow."""


class Short(Unreadable):
    """The data ends before the announced length."""


def text(data: bytes) -> str:
    """Return the beginning of some bytes as raw text, including control characters."""
    return data[:MAX_VALUE_LENGTH].decode("utf-8", "backslashreplace")[:MAX_VALUE_LENGTH]


def require(condition: bool) -> None:
    if not condition:
        raise Malformed


class Reader:
    """A position in a message of `size` bytes, of which `data` is the beginning; or in a stream,
    which may continue.
    """

    def __init__(self, data: bytes, size: int | None = None) -> None:
        self._data = data
        self._is_open = size is None
        self._size = len(data) if size is None else size
        self._at = 0

    @property
    def left(self) -> int:
        """How many announced bytes follow, present or not; of a stream, how many are present."""
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
        """Read the rest as numbers of two bytes, as far as they are present."""
        require(self.left % 2 == 0)
        present = self.rest()
        return list(struct.unpack_from(f"!{len(present) // 2}H", present))

    def part(self, size: int) -> Reader:
        """Skip `size` bytes, which may not all be present, and return a reader of them."""
        require(size <= self.left or self._is_open)
        start, self._at = self._at, self._at + size
        return Reader(self._data[start : self._at], size)

    def vector(self, width: int) -> Reader:
        """Read a length of `width` bytes, and return a reader of that many bytes."""
        return self.part(self.number(width))

    def varint(self) -> int:
        """Read a number in groups of seven bits, the least significant first; up to five."""
        value = 0
        for shift in range(0, 35, 7):
            one = self.number(1)
            value |= (one & 0x7F) << shift
            if one < 0x80:
                return value
        raise Malformed

    def until(self, end: bytes, most: int = 1024) -> bytes:
        """Read up to an end mark, and the mark; return the bytes before it."""
        found = self._data.find(end, self._at, self._at + most + len(end))
        if found < 0:
            raise Malformed if len(self._data) - self._at >= most + len(end) else Short
        start, self._at = self._at, found + len(end)
        return self._data[start:found]

    def rest(self) -> bytes:
        """Read all present bytes."""
        start, self._at = self._at, self._size
        return self._data[start:]

    def ber(self) -> tuple[int, Reader]:
        """Read the tag and the length of a BER element, and return a reader of its contents."""
        tag, length = self.take(2)
        if length & 0x80:
            require(0x81 <= length <= 0x84)
            length = self.number(length & 0x7F)
        return tag, self.part(length)
