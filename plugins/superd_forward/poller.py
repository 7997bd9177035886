"""All sockets of a service in one epoll(7), which the event loop polls as a single descriptor.

That is what makes a byte's path short: one wake-up of the loop serves all sockets that are ready,
and each is registered once for its life, edge-triggered.
"""

from __future__ import annotations

import asyncio
import mmap
import select
from typing import Protocol

from superd_forward.pipes import Pipes

BATCH = 256  # sockets per wake-up: the others' turn comes before a flood is over
PORTION = 64 * 1024  # bytes: the most that is read at once, and that waits for one side
WITHOUT_MEMORY = 0.1  # seconds until it is tried again

URGENT = select.EPOLLPRI  # a byte out of band, where reading stops although there may be more
EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | URGENT | select.EPOLLET
BROKEN = select.EPOLLERR
ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
INPUT = select.EPOLLIN | ENDED
MORE = select.EPOLLIN | select.EPOLLRDHUP  # there may be more to read; nothing is broken


class Waiting(Protocol):
    """Who waits for a socket."""

    def ready(self, events: int) -> None:
        """Go on, by what epoll(7) says; with input: until there is no more, or `again`."""

    def failed(self, error: BaseException) -> None:
        """Take note of what `ready` has raised."""


class Poller:
    """Has those who wait for a socket go on when it is ready.

    `buffer` is what all of them read into; None while there is no memory for another.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.buffer: memoryview | None = _new_buffer()
        self.pipes = Pipes()
        self._epoll = select.epoll()
        self._waiting: dict[int, Waiting] = {}
        self._again: dict[int, Waiting] = {}
        self._new: set[int] = set()  # added since epoll was asked: what it told is about others
        loop.add_reader(self._epoll.fileno(), self._run)

    def add(self, descriptor: int, who: Waiting) -> None:
        """Wait for a socket. Raises OSError where the system has no room for it."""
        self._epoll.register(descriptor, EVENTS)
        self._waiting[descriptor] = who
        self._new.add(descriptor)

    def hand_over(self, descriptor: int, who: Waiting) -> None:
        """Have somebody else wait for a socket."""
        self._waiting[descriptor] = who

    def forget(self, descriptor: int) -> None:
        """Wait no more for a socket that is about to be closed; that takes it out of the epoll."""
        self._waiting.pop(descriptor, None)

    def again(self, descriptor: int, who: Waiting) -> None:
        """Have it go on with its input when the others have had their turn."""
        if not self._again:
            self.loop.call_soon(self._run_again)
        self._again[descriptor] = who

    def give_away(self) -> None:
        """Let the buffer belong to who has read into it last; make another."""
        self.buffer = None
        self._renew()

    def _renew(self) -> None:
        try:
            self.buffer = _new_buffer()
        except (OSError, MemoryError):
            self.loop.call_later(WITHOUT_MEMORY, self._renew)
            return
        self._run_again()

    def _run(self) -> None:
        find, new = self._waiting.get, self._new
        new.clear()
        for descriptor, events in self._epoll.poll(0, BATCH):
            who = find(descriptor)
            if who is not None and descriptor not in new:
                try:
                    who.ready(events)
                except BaseException as error:  # noqa: BLE001  the others are to go on
                    who.failed(error)

    def _run_again(self) -> None:
        if self.buffer is not None:
            waiting, self._again = self._again, {}
            for descriptor, who in waiting.items():
                if self._waiting.get(descriptor) is who:
                    try:
                        who.ready(MORE)
                    except BaseException as error:  # noqa: BLE001
                        who.failed(error)


def _new_buffer() -> memoryview:
    """Return memory that the kernel gives page by page when it is written to."""
    return memoryview(mmap.mmap(-1, PORTION, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
