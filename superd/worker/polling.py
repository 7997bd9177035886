"""Polls the sockets of relays, all of them in one epoll(7).

Runs in the worker, on the loop. A byte's path is to be short: a socket is registered once for its
life, edge-triggered, and whoever waits for it is called from where the epoll is asked. In a worker
that only relays this is the epoll of the loop itself; below uvloop, which lets nobody in, it is one
that the loop polls as a single descriptor. Never raises, but where there is no room for a socket.
"""

from __future__ import annotations

import asyncio
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

    def __init__(
        self, epoll: select.epoll, call_soon: Callable[[Callable[[], object]], object]
    ) -> None:
        self.loop_is_wanted = False
        self._epoll = epoll
        self._call_soon = call_soon
        self._waiting: dict[int, Polled] = {}
        self._again: dict[int, Polled] = {}
        self._new: set[int] = set()  # added since epoll was asked: what it told is about others

    def add(self, descriptor: int, who: Polled) -> None:
        self._epoll.register(descriptor, EVENTS)
        self._waiting[descriptor] = who
        self._new.add(descriptor)

    def hand_over(self, descriptor: int, who: Polled) -> None:
        self._waiting[descriptor] = who

    def forget(self, descriptor: int) -> None:
        self._waiting.pop(descriptor, None)

    def again(self, descriptor: int, who: Polled) -> None:
        if not self._again:
            self._call_soon(self._run_again)
        self._again[descriptor] = who

    def poll(self, timeout: float = 0) -> list[tuple[int, int]]:
        """Have go on whose sockets are ready, until others are, or the loop is wanted, or `timeout`
        seconds are over; below 0 is without end. Return descriptors that are others', and events.
        """
        poll, find, new = self._epoll.poll, self._waiting.get, self._new
        until = time.monotonic() + timeout if timeout > 0 else 0.0
        while True:
            others = []
            new.clear()
            for descriptor, events in poll(timeout, BATCH):
                who = find(descriptor)
                if who is None:
                    others.append((descriptor, events))
                elif descriptor not in new:
                    try:
                        who.ready(events)
                    except BaseException as error:  # noqa: BLE001  the others are to go on
                        who.failed(error)
            if others or self.loop_is_wanted or not timeout:
                return others
            if timeout > 0:
                timeout = max(0.0, until - time.monotonic())

    def close(self) -> None:
        """Poll nothing any more."""
        self._epoll.close()

    def _run_again(self) -> None:
        waiting, self._again = self._again, {}
        for descriptor, who in waiting.items():
            if self._waiting.get(descriptor) is who:
                try:
                    who.ready(MORE)
                except BaseException as error:  # noqa: BLE001  the others are to go on
                    who.failed(error)


class PollingSelector(selectors.EpollSelector):
    """A selector that serves relays while the loop waits; the loop is told of the others only."""

    def __init__(self, call_soon: Callable[[Callable[[], object]], object]) -> None:
        super().__init__()
        # one of our own, since that of the selector is private
        self.poller = EpollPoller(select.epoll.fromfd(os.dup(self.fileno())), call_soon)

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
        selector = PollingSelector(self.call_soon)
        self.poller = selector.poller
        super().__init__(selector)

    # What the loop is to do now, or by another time than it has told the selector

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
    poller = EpollPoller(epoll, loop.call_soon)
    loop.add_reader(epoll.fileno(), poller.poll)
    return poller
