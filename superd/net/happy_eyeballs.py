"""Happy Eyeballs (RFC 8305): in which order, and when, the addresses of one destination are tried.

Used by the client commands, and by workers that forward connections. The caller opens sockets and
waits. Never raises.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from itertools import zip_longest
from typing import Protocol, TypeVar

CONNECTION_ATTEMPT_DELAY = 0.25  # seconds (RFC 8305, 5)


class HasFamily(Protocol):
    @property
    def family(self) -> int: ...


A = TypeVar("A", bound=HasFamily)


class Candidates(deque[A]):
    """The addresses that are still to be tried, the next one first.

    Both families take turns, starting with that of the first address (RFC 8305, 4). The caller
    tries the next one as soon as no attempt is pending, and beside pending attempts once it is due.
    """

    def __init__(self, addresses: Iterable[A]) -> None:
        found = list(addresses)
        first = [one for one in found if one.family == found[0].family]
        second = [one for one in found if one.family != found[0].family]
        pairs = zip_longest(first, second)
        super().__init__(one for pair in pairs for one in pair if one is not None)
        self.due_at = 0.0  # by the monotonic clock

    def attempted(self) -> None:
        """Note that an attempt has started, which puts off the next one."""
        self.due_at = time.monotonic() + CONNECTION_ATTEMPT_DELAY
