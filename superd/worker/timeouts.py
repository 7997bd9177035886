"""Closes connections that have timed out, or that no program has any more, and reports handlers
that keep running after a time-out.

Runs in the worker, on the loop, a few times a second. Never raises.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

from superd.observe.connections import End
from superd.observe.records import Record
from superd.worker.runtime.accounting import AccountedConnection
from superd.worker.runtime.context import Context
from superd.worker.runtime.service import WorkerService

SWEEP_INTERVAL = 0.25  # seconds between checks of all connections
CANCEL_TIMEOUT = 1.0  # seconds that a cancelled coroutine has for cleaning up


class Timeouts:
    """The time-outs of all connections of a worker. `expired` has those that have timed out, and
    since when, by the loop's time; infinity for those that were reported.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.expired: dict[AccountedConnection, float] = {}
        self._has_timeouts = False

    def start(self) -> None:
        """Check connections from now on, if any service has a time-out or may run programs."""
        services = self.context.services
        self._has_timeouts = any(map(_has_timeouts, services))
        if self._has_timeouts or any(service.takeover for service in services):
            self.context.loop.call_later(SWEEP_INTERVAL, self._sweep)

    def _sweep(self) -> None:
        context = self.context
        context.loop.call_later(SWEEP_INTERVAL, self._sweep)
        context.heartbeat.beat()
        for connection in tuple(context.programs):
            connection.check_holder()
        if self._has_timeouts:
            self._expire()

    def _expire(self) -> None:
        context = self.context
        now = context.loop.time()
        expired = [(session, _expiry(session, now)) for session in context.connections.values()]
        known, self.expired = self.expired, {}
        for session, end in expired:
            if end is not None:
                session.expire(end)
                since = known.get(session, now)
                if now - since >= CANCEL_TIMEOUT and session.task is not None:
                    self._report(session, session.task)
                    since = float("inf")
                self.expired[session] = since

    def _report(self, session: AccountedConnection, task: asyncio.Task[None]) -> None:
        """Report, once, which coroutine still runs for a connection that has timed out."""
        stack = traceback.StackSummary.extract(_frames(task.get_coro()))
        text = "its handler keeps running after its time-out, and keeps its slot"
        detail = tuple("".join(stack.format()).splitlines())
        where = session.peer.endpoint
        self.context.report(
            Record("warning", text, session.service, session.id, where, detail=detail)
        )


def _frames(coroutine: Any) -> Iterator[tuple[FrameType, int]]:
    """Yield the frame and line of a coroutine, and of each coroutine that it awaits."""
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        yield frame, frame.f_lineno
        coroutine = coroutine.cr_await


def _has_timeouts(service: WorkerService) -> bool:
    entry = service.entry
    return bool(entry.first_byte_timeout or entry.idle_timeout or entry.session_timeout)


def _expiry(session: AccountedConnection, now: float) -> End | None:
    """Return which time-out of a connection has passed; None if none has."""
    entry = session.worker_service.entry
    received, sent = session.progress()
    if entry.session_timeout and now - session.started >= entry.session_timeout:
        return End.SESSION
    if (
        entry.first_byte_timeout
        and not received
        and now - session.started >= entry.first_byte_timeout
    ):
        return End.FIRST_BYTE
    if received + sent != session.seen:
        session.seen = received + sent
        session.active_at = now
    if entry.idle_timeout and now - session.active_at >= entry.idle_timeout:
        return End.IDLE
    return None
