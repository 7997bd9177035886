"""Tries addresses that could not be bound again, until that succeeds, and passes the new sockets to
the workers that run already, so that no connection is lost.

Runs in the master. Looks up names in a child, never itself. Pauses while a reload or an upgrade is
under way. Raises nothing.
"""

from __future__ import annotations

import selectors
import time
from functools import partial

from superd.errors import SuperdError
from superd.listen.failures import shown_addresses
from superd.listen.listener import Listener
from superd.listen.names import LOOKUP_TIMEOUT, NO_ANSWERS, Answers, answer_of, look_up_as_json
from superd.master.context import Context
from superd.master.workers.child import Child
from superd.process.isolated import Job, start_isolated
from superd.worker import channel

MIN_RETRY_INTERVAL = 1.0  # seconds; doubled after each attempt that bound no address
MAX_RETRY_INTERVAL = 10.0  # seconds


class PendingAddresses:
    """The pending addresses of the generation that serves."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lookup: Job | None = None
        self._generation = 0
        self._interval = MIN_RETRY_INTERVAL
        self._due = 0.0
        self._undelivered: list[tuple[Child, Listener]] = []

    def tick(self, now: float) -> None:
        """Try again if it is due; pass on the sockets that some workers have not got yet."""
        self._deliver()
        context = self._context
        pending = context.current.listeners.pending
        if not pending or not context.may_change:
            return
        if context.current.number != self._generation:
            self._generation, self._interval = context.current.number, MIN_RETRY_INTERVAL
            self._due = now + self._interval
        if now < self._due or self._lookup is not None:
            return
        listed = [one.configured.listed for one in pending]
        if names := {address.host for address in listed if address.is_name}:
            try:
                job = partial(look_up_as_json, names)
                self._lookup = start_isolated(job, LOOKUP_TIMEOUT + 1)
            except SuperdError:
                self._schedule()
            else:
                context.selector.register(self._lookup.reader, selectors.EVENT_READ, self._read)
        else:
            self._bind(NO_ANSWERS)

    def close(self) -> None:
        """End the look-up that is under way."""
        if self._lookup is not None:
            self._end_lookup()

    def _read(self) -> None:
        assert self._lookup is not None
        if self._lookup.read():
            answers = self._end_lookup()
            if self._context.may_change:
                self._bind(answers)

    def _end_lookup(self) -> Answers:
        assert self._lookup is not None
        self._context.selector.unregister(self._lookup.reader)
        lookup, self._lookup = self._lookup, None
        found = lookup.finish().result or {}
        return {name: answer_of(passed) for name, passed in found.items()}

    def _bind(self, answers: Answers) -> None:
        notices: list[str] = []
        bound = self._context.current.listeners.bind_pending(answers, notices)
        for notice in notices:
            self._context.log.warning(notice)
        by_service: dict[str, list[Listener]] = {}
        for listener in bound:
            by_service.setdefault(listener.service, []).append(listener)
        for service, listeners in by_service.items():
            addresses = shown_addresses(one.address for one in listeners)
            self._context.log.info(f"now listens on {addresses}", service)
        self._undelivered += [
            (slot.child, listener)
            for listener in bound
            for slot in self._context.current.slots
            if slot.child is not None and listener.service in slot.pool.services
        ]
        self._interval = (
            MIN_RETRY_INTERVAL if bound else min(2 * self._interval, MAX_RETRY_INTERVAL)
        )
        self._schedule()
        self._deliver()

    def _schedule(self) -> None:
        self._due = time.monotonic() + self._interval

    def _deliver(self) -> None:
        """Pass sockets to workers, as far as their channels have room; the rest at the next tick.
        A worker that has ended needs none, as its successor starts with all sockets.
        """
        self._undelivered = [
            (child, listener)
            for child, listener in self._undelivered
            if child.channel.fileno() >= 0
            and not listener.is_closed
            and not child.send_files(
                channel.LISTEN,
                [listener.socket.fileno()],
                service=listener.service,
                transport=listener.address.transport.value,
            )
        ]
