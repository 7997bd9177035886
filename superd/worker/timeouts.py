"""Closes connections whose time is over, and tells of handlers that go on nevertheless.

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

SWEEP = 0.25  # seconds between looks
GRACE = 1.0  # seconds that a coroutine that was cancelled has to clean up


class Timeouts:
    """Looks after all sessions of a worker; `over` are those whose time is over, and since when,
    by the loop's time.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.over: dict[AccountedConnection, float] = {}

    def start(self) -> None:
        """Look from now on, if anybody has a time-out."""
        if any(_has_timeouts(service) for service in self.context.services):
            self.context.loop.call_later(SWEEP, self._sweep)

    def _sweep(self) -> None:
        context = self.context
        context.loop.call_later(SWEEP, self._sweep)
        context.heartbeat.beat()
        now = context.loop.time()
        late = [(session, _late(session, now)) for session in context.connections.values()]
        known, self.over = self.over, {}
        for session, end in late:
            if end is not None:
                session.expire(end)
                since = known.get(session, now)
                if now - since >= GRACE and session.task is not None:
                    self._tell(session, session.task)
                    since = float("inf")
                self.over[session] = since

    def _tell(self, session: AccountedConnection, task: asyncio.Task[None]) -> None:
        """Say, once, which coroutine keeps a place that is nobody's any more."""
        stack = traceback.StackSummary.extract(_frames(task.get_coro()))
        text = "its handler goes on though its time is over, and keeps its place"
        detail = tuple("".join(stack.format()).splitlines())
        where = session.peer.endpoint
        self.context.report(
            Record("warning", text, session.service, session.id, where, detail=detail)
        )


def _frames(coroutine: Any) -> Iterator[tuple[FrameType, int]]:
    """Yield where a coroutine waits, and where what it waits for does, with the lines."""
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        yield frame, frame.f_lineno
        coroutine = coroutine.cr_await


def _has_timeouts(service: WorkerService) -> bool:
    entry = service.entry
    return bool(entry.first_byte_timeout or entry.idle_timeout or entry.session_timeout)


def _late(session: AccountedConnection, now: float) -> End | None:
    """Return which time-out of a session is over."""
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
