"""Timers for many members: one timer checks all of them at a fixed interval."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Timers(Generic[T]):
    """Calls `check(member)` for each member every `interval` seconds; no timer runs without any."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, interval: float, check: Callable[[T], None]
    ) -> None:
        self._loop = loop
        self._interval = interval
        self._check = check
        self._members: dict[T, None] = {}
        self._is_scheduled = False

    def add(self, member: T) -> None:
        self._members[member] = None
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_later(self._interval, self._check_all)

    def discard(self, member: T) -> None:
        self._members.pop(member, None)

    def _check_all(self) -> None:
        try:
            for member in list(self._members):
                if member in self._members:
                    self._check(member)
        finally:
            self._is_scheduled = bool(self._members)
            if self._is_scheduled:
                self._loop.call_later(self._interval, self._check_all)
