"""Polls the sockets of relays, all of them in one epoll(7).

Runs in the worker, on the loop. A byte's path is to be short: a socket is registered once for its
life, edge-triggered, and whoever waits for it is called from where the epoll is asked. In a worker
that only relays this is the epoll of the loop itself; below uvloop, which lets nobody in, it is one
that the loop polls as a single descriptor. Raises OSError where there is no room for a socket, and
MemoryError; what was lost then is asked for anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import selectors
import time
from collections.abc import Callable
from contextvars import Context
from typing import TypeVarTuple

from superd.plugin.relay import Polled, Poller

BATCH = 256  # sockets per wake-up: the others' turn comes before a flood is over

EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
MORE = select.EPOLLIN | select.EPOLLRDHUP  # there may be more to read; nothing is broken

WRITABLE = ~select.EPOLLIN  # with an error, a socket is both
READABLE = ~select.EPOLLOUT

Given = TypeVarTuple("Given")


class EpollPoller(Poller):
    """The poller of a worker. `loop_is_wanted` is whether the loop has something to do besides."""

    def __init__(self, epoll: select.epoll, loop: asyncio.AbstractEventLoop) -> None:
        self.loop_is_wanted = False
        self._epoll = epoll
        self._loop = loop
        self._waiting: dict[int, Polled] = {}
        self._again: dict[int, Polled] = {}
        self._changed: set[int] = set()  # since epoll was asked: what it told is about others
        self._has_lost = False  # whether it has told something that nobody was told

    def add(self, descriptor: int, who: Polled) -> None:
        self._epoll.register(descriptor, EVENTS)
        self._waiting[descriptor] = who
        self._changed.add(descriptor)

    def hand_over(self, descriptor: int, who: Polled) -> None:
        self._waiting[descriptor] = who

    def forget(self, descriptor: int) -> None:
        self._waiting.pop(descriptor, None)
        self._changed.add(descriptor)

    def again(self, descriptor: int, who: Polled) -> None:
        if self._waiting.get(descriptor) is who:
            if not self._again:
                self._loop.call_soon(self._run_again)
            self._again[descriptor] = who

    def poll(self, timeout: float = 0) -> list[tuple[int, int]]:
        """Have go on whose sockets are ready, until others are, or the loop is wanted, or `timeout`
        seconds are over; below 0 is without end. Return descriptors that are others', and events.
        """
        poll, find, changed = self._epoll.poll, self._waiting.get, self._changed
        if self._has_lost:
            self._ask_anew()
        until = time.monotonic() + timeout if timeout > 0 else 0.0
        while True:
            others = []
            changed.clear()
            self._has_lost = True
            for descriptor, events in poll(timeout, BATCH):
                if descriptor in changed:
                    continue
                who = find(descriptor)
                if who is None:
                    others.append((descriptor, events))
                    continue
                try:
                    who.ready(events)
                except BaseException as error:  # noqa: BLE001  the others are to go on
                    self._tell(who, error)
            self._has_lost = False
            if others or self.loop_is_wanted or not timeout:
                return others
            if timeout > 0:
                timeout = max(0.0, until - time.monotonic())

    def close(self) -> None:
        """Poll nothing any more."""
        self._epoll.close()

    def _ask_anew(self) -> None:
        """Have epoll tell once more what it has told: that was lost where there was no memory."""
        for descriptor in tuple(self._waiting):
            with contextlib.suppress(OSError):  # it is closed, as its owner knows
                self._epoll.modify(descriptor, EVENTS)

    def _run_again(self) -> None:
        waiting, self._again = self._again, {}
        for descriptor, who in waiting.items():
            if self._waiting.get(descriptor) is who:
                try:
                    who.ready(MORE)
                except BaseException as error:  # noqa: BLE001  the others are to go on
                    self._tell(who, error)

    def _tell(self, who: Polled, error: BaseException) -> None:
        """Tell somebody of its mistake; that may fail as well, where there is no memory."""
        try:
            who.failed(error)
        except BaseException as another:  # noqa: BLE001  the others are to go on
            context = {"message": "a relay failed, and could not be told", "exception": another}
            self._loop.call_exception_handler(context)


class PollingSelector(selectors.EpollSelector):
    """A selector that serves relays while the loop waits; the loop is told of the others only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        # one of our own, since that of the selector is private
        self.poller = EpollPoller(select.epoll.fromfd(os.dup(self.fileno())), loop)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.poller.loop_is_wanted = False
        found = []
        known = self.get_map()
        for descriptor, events in self.poller.poll(-1 if timeout is None else max(0, timeout)):
            key = known.get(descriptor)
            if key is not None:
                mask = selectors.EVENT_WRITE if events & WRITABLE else 0
                mask |= selectors.EVENT_READ if events & READABLE else 0
                found.append((key, mask & key.events))
        return found

    def close(self) -> None:
        self.poller.close()
        super().close()


class PollingLoop(asyncio.SelectorEventLoop):
    """asyncio's loop, with a poller that it does not have to wake up for."""

    def __init__(self) -> None:
        selector = PollingSelector(self)
        self.poller = selector.poller
        super().__init__(selector)

    # What the loop is to do now, or by another time than it has told the selector

    def stop(self) -> None:
        self.poller.loop_is_wanted = True
        super().stop()

    def call_soon(
        self, callback: Callable[[*Given], object], *args: *Given, context: Context | None = None
    ) -> asyncio.Handle:
        self.poller.loop_is_wanted = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Given], object],
        *args: *Given,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self.poller.loop_is_wanted = True
        return super().call_at(when, callback, *args, context=context)


def poller_of(loop: asyncio.AbstractEventLoop) -> EpollPoller:
    """Return the poller of a loop: its own, or one that it polls."""
    if isinstance(loop, PollingLoop):
        return loop.poller
    epoll = select.epoll()
    poller = EpollPoller(epoll, loop)
    loop.add_reader(epoll.fileno(), poller.poll)
    return poller
