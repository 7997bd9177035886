"""Timers for many: all that wait for something are looked at together, so many times a second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Timers(Generic[T]):
    """Calls `look(member)` for each every `interval` seconds; costs nothing while there is none."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, interval: float, look: Callable[[T], None]
    ) -> None:
        self._loop = loop
        self._interval = interval
        self._look = look
        self._members: dict[T, None] = {}
        self._is_due = False

    def add(self, member: T) -> None:
        self._members[member] = None
        if not self._is_due:
            self._is_due = True
            self._loop.call_later(self._interval, self._go_round)

    def discard(self, member: T) -> None:
        self._members.pop(member, None)

    def _go_round(self) -> None:
        try:
            for member in list(self._members):
                if member in self._members:
                    self._look(member)
        finally:
            self._is_due = bool(self._members)
            if self._is_due:
                self._loop.call_later(self._interval, self._go_round)
