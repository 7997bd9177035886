"""What all sides of a service pass bytes on with: a buffer that they read into, and pipes."""

from __future__ import annotations

import asyncio
import mmap

from superd.plugin import Polled, Poller
from superd_forward.pipes import Pipes

PORTION = 64 * 1024  # bytes: the most that is read at once, and that waits for one side
WITHOUT_MEMORY = 0.1  # seconds until it is tried again


class Memory:
    """`buffer` is None while there is no memory for another."""

    def __init__(self, loop: asyncio.AbstractEventLoop, poller: Poller) -> None:
        self.buffer: memoryview | None = _new_buffer()
        self.pipes = Pipes()
        self._loop = loop
        self._poller = poller
        self._waiting: dict[int, Polled] = {}  # for a buffer
        self._is_due = False

    def again(self, descriptor: int, who: Polled) -> None:
        """Have it go on with its input after the others, once there is a buffer."""
        if self.buffer is not None:
            self._poller.again(descriptor, who)
            return
        self._waiting[descriptor] = who
        self._renew_later()

    def give_away(self) -> None:
        """Let the buffer belong to who has read into it last; make another."""
        self.buffer = None
        self._renew()

    def _renew_later(self) -> None:
        if not self._is_due:
            self._loop.call_later(WITHOUT_MEMORY, self._renew)
            self._is_due = True  # not before: there may be no memory for the timer

    def _renew(self) -> None:
        self._is_due = False
        try:
            self.buffer = _new_buffer()
        except (OSError, MemoryError):
            self._renew_later()
            return
        waiting, self._waiting = self._waiting, {}
        for descriptor, who in waiting.items():
            self._poller.again(descriptor, who)


def _new_buffer() -> memoryview:
    """Return memory that the kernel gives page by page when it is written to."""
    return memoryview(mmap.mmap(-1, PORTION, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
