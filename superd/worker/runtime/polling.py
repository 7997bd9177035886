"""Polls the sockets of relays, all of them with one epoll(7).

Runs in the worker, on the loop. The path of a byte is short: a socket is registered once for its
life, edge-triggered, and the relay is called directly from the code that polls. In a worker that
only relays this is the epoll of the loop itself. uvloop gives no access to its own, so there it is
another one, which the loop polls as a single descriptor. Raises OSError where a socket cannot be
registered, and MemoryError; events that were lost because of it are polled for again.
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

MAX_BATCH = 256  # sockets per wake-up, so that a flood does not starve the rest of the loop

EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
MORE_INPUT = select.EPOLLIN | select.EPOLLRDHUP  # more may be readable; no error

WRITABLE = ~select.EPOLLIN  # a socket with an error is readable and writable
READABLE = ~select.EPOLLOUT

Given = TypeVarTuple("Given")


class EpollPoller(Poller):
    """The poller of a worker. `is_loop_needed` is whether the loop has other work to do."""

    def __init__(self, epoll: select.epoll, loop: asyncio.AbstractEventLoop) -> None:
        self.is_loop_needed = False
        self._epoll = epoll
        self._loop = loop
        self._relays: dict[int, Polled] = {}
        self._again: dict[int, Polled] = {}
        self._changed: set[int] = set()  # since the last poll: its events are about other sockets
        self._has_lost = False  # whether events of the last poll were not delivered

    def add(self, descriptor: int, relay: Polled) -> None:
        self._epoll.register(descriptor, EVENTS)
        self._relays[descriptor] = relay
        self._changed.add(descriptor)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def hand_over(self, descriptor: int, relay: Polled) -> None:
        self._relays[descriptor] = relay

    def forget(self, descriptor: int) -> None:
        self._relays.pop(descriptor, None)
        self._changed.add(descriptor)

    def again(self, descriptor: int, relay: Polled) -> None:
        if self._relays.get(descriptor) is relay:
            if not self._again:
                self._loop.call_soon(self._run_again)
            self._again[descriptor] = relay

    def poll(self, timeout: float = 0) -> list[tuple[int, int]]:
        """Call the relays whose sockets are ready, until another descriptor is ready, the loop is
        needed, or `timeout` seconds have passed; below 0 is no time-out. Return the descriptors
        that belong to no relay, with their events.
        """
        poll, find, changed = self._epoll.poll, self._relays.get, self._changed
        if self._has_lost:
            self._rearm()
        until = time.monotonic() + timeout if timeout > 0 else 0.0
        while True:
            others = []
            changed.clear()
            self._has_lost = True
            for descriptor, events in poll(timeout, MAX_BATCH):
                if descriptor in changed:
                    continue
                relay = find(descriptor)
                if relay is None:
                    others.append((descriptor, events))
                    continue
                try:
                    relay.ready(events)
                except BaseException as error:  # noqa: BLE001  the other relays continue
                    self._fail(relay, error)
            self._has_lost = False
            if others or self.is_loop_needed or not timeout:
                return others
            if timeout > 0:
                timeout = max(0.0, until - time.monotonic())

    def close(self) -> None:
        """Stop polling."""
        self._epoll.close()

    def _rearm(self) -> None:
        """Have epoll report the state of every socket again: events were lost without memory."""
        for descriptor in tuple(self._relays):
            with contextlib.suppress(OSError):  # its relay has closed it
                self._epoll.modify(descriptor, EVENTS)

    def _run_again(self) -> None:
        waiting, self._again = self._again, {}
        for descriptor, relay in waiting.items():
            if self._relays.get(descriptor) is relay:
                try:
                    relay.ready(MORE_INPUT)
                except BaseException as error:  # noqa: BLE001  the other relays continue
                    self._fail(relay, error)

    def _fail(self, relay: Polled, error: BaseException) -> None:
        """Report an exception to the relay that raised it; without memory this may fail as well."""
        try:
            relay.failed(error)
        except BaseException as second:  # noqa: BLE001  the other relays continue
            context = {"message": "a relay failed, and so did its failed()", "exception": second}
            self._loop.call_exception_handler(context)


class PollingSelector(selectors.EpollSelector):
    """A selector that serves relays while the loop waits; the loop sees other descriptors only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        # a duplicate, since the selector's own epoll is private
        self.poller = EpollPoller(select.epoll.fromfd(os.dup(self.fileno())), loop)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.poller.is_loop_needed = False
        found = []
        known = self.get_map()
        for descriptor, events in self.poller.poll(-1 if timeout is None else max(0, timeout)):
            key = known.get(descriptor)
            if key is not None:
                mask = selectors.EVENT_WRITE if events & WRITABLE else 0
                mask |= selectors.EVENT_READ if events & READABLE else 0
                found.append((key, mask & key.events))
        return found

    def leave(self) -> None:
        """Poll by another epoll, in a process that was forked: one that both share would lose the
        sockets of the worker that this process closes.
        """
        with select.epoll() as own:
            for shared in (self.fileno(), self.poller.fileno()):
                os.dup2(own.fileno(), shared, inheritable=False)

    def close(self) -> None:
        self.poller.close()
        super().close()


class PollingLoop(asyncio.SelectorEventLoop):
    """asyncio's loop, with a poller that serves relays without waking the loop up."""

    def __init__(self) -> None:
        self.selector = PollingSelector(self)
        self.poller = self.selector.poller
        super().__init__(self.selector)

    # Work for the loop itself, which ends the selector's wait

    def stop(self) -> None:
        self.poller.is_loop_needed = True
        super().stop()

    def call_soon(
        self, callback: Callable[[*Given], object], *args: *Given, context: Context | None = None
    ) -> asyncio.Handle:
        self.poller.is_loop_needed = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Given], object],
        *args: *Given,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self.poller.is_loop_needed = True
        return super().call_at(when, callback, *args, context=context)


def poller_of(loop: asyncio.AbstractEventLoop) -> EpollPoller:
    """Return the poller of a loop: its own, or one that it polls."""
    if isinstance(loop, PollingLoop):
        return loop.poller
    epoll = select.epoll()
    poller = EpollPoller(epoll, loop)
    loop.add_reader(epoll.fileno(), poller.poll)
    return poller
