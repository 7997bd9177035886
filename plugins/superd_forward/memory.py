"""The memory that all sides of a service share: a buffer that they read into, and pipes."""

from __future__ import annotations

import asyncio
import mmap

from superd.plugin import Polled, Poller
from superd_forward.pipes import PipePool

BUFFER_BYTES = 64 * 1024  # limit of one read, and of unsent data towards one side
ALLOCATION_RETRY_SECONDS = 0.1


class Memory:
    """`buffer` is None while no memory can be allocated."""

    def __init__(self, loop: asyncio.AbstractEventLoop, poller: Poller) -> None:
        self.buffer: memoryview | None = _allocate()
        self.pipes = PipePool()
        self._loop = loop
        self._poller = poller
        self._waiting: dict[int, Polled] = {}  # by descriptor; for a buffer
        self._is_scheduled = False

    def read_again(self, descriptor: int, polled: Polled) -> None:
        """Schedule a call of `polled.ready` for its input, once a buffer is available."""
        if self.buffer is not None:
            self._poller.again(descriptor, polled)
            return
        self._waiting[descriptor] = polled
        self._renew_later()

    def release_buffer(self) -> None:
        """Leave the buffer to the side that keeps its contents; allocate another."""
        self.buffer = None
        self._renew()

    def _renew_later(self) -> None:
        if not self._is_scheduled:
            self._loop.call_later(ALLOCATION_RETRY_SECONDS, self._renew)
            self._is_scheduled = True  # after the call, which may raise MemoryError

    def _renew(self) -> None:
        self._is_scheduled = False
        try:
            self.buffer = _allocate()
        except (OSError, MemoryError):
            self._renew_later()
            return
        waiting, self._waiting = self._waiting, {}
        for descriptor, polled in waiting.items():
            self._poller.again(descriptor, polled)


def _allocate() -> memoryview:
    """Return memory that the kernel provides page by page when it is written to."""
    return memoryview(mmap.mmap(-1, BUFFER_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
