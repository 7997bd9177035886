"""What a worker does when the master asks: it tells of its connections, or ends one.

Runs in the worker, on the loop. A long answer goes in parts, one at a turn of the loop, so that
clients notice nothing; what the line does not take just now is sent a little later. Never raises.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from superd.admission.scoreboard import Count
from superd.observe.connections import End, safe
from superd.observe.listing import MOST, Row, row_of
from superd.worker import channel
from superd.worker.channel import Channel
from superd.worker.runtime.accounting import AccountedConnection
from superd.worker.runtime.context import Context
from superd.worker.serve.listener import ListenerHandoff
from superd.worker.serve.stream import ProtocolSession

PART = 8 * 1024  # bytes of connections that are told at once, which takes less than a millisecond
MOST_SERVICES = 200  # told at once
REST_OF_ROW = 200  # bytes of a row, beside the texts
RETRY = 0.02  # seconds until the line is tried again
PATIENCE = 5.0  # seconds that an answer may take; the master has given up long before


class Commands:
    """Answers what the master asks, by its kind."""

    def __init__(self, context: Context, channel_: Channel) -> None:
        self.context = context
        self.channel = channel_
        self.by_kind: dict[str, Callable[..., None]] = {
            channel.CONNECTIONS: self._connections,
            channel.KILL: self._kill,
            channel.TRAFFIC: self._traffic,
        }
        self._tasks: set[asyncio.Task[None]] = set()

    def _connections(self, inquiry: int, service: str | None) -> None:
        self._start(self._answer(inquiry, self._parts(service)))

    def _kill(self, inquiry: int, number: int, serial: int) -> None:
        found = serial == self.context.serial and self._ended(number)
        self._start(self._answer(inquiry, iter([found])))

    def _ended(self, number: int) -> bool:
        """End a connection as a time-out would; tell whether there is one of this number."""
        session = self.context.connections.get(number)
        if session is not None:
            if session.end is End.CLIENT:  # it has only said that it will send no more
                session.end = End.KILLED
            session.expire(End.KILLED)
        handoffs = (one for one in self.context.sockets if isinstance(one, ListenerHandoff))
        return session is not None or any(one.cancel(End.KILLED, number) for one in handoffs)

    def _traffic(self, inquiry: int) -> None:
        self._start(self._answer(inquiry, self._sums()))

    def _start(self, answering: Coroutine[Any, Any, None]) -> None:
        task = self.context.loop.create_task(answering)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, inquiry: int, parts: Iterator[object]) -> None:
        """Send the parts, and then that they were all."""
        end = self.context.loop.time() + PATIENCE
        for part in parts:
            while not self.channel.answer(inquiry, part, is_last=False):
                if self.context.loop.time() > end:
                    return
                await asyncio.sleep(RETRY)
            await asyncio.sleep(0)
        while not self.channel.answer(inquiry, None, is_last=True):
            if self.context.loop.time() > end:
                return
            await asyncio.sleep(RETRY)

    def _parts(self, service: str | None) -> Iterator[list[Row] | int]:
        """Yield the connections there are now, as far as they still are when it is their turn; in
        the end how many are more than are told.
        """
        now = self.context.loop.time()
        rows: list[Row] = []
        size = 0
        sessions = self.context.connections.values()
        told = [one for one in sessions if service in (None, one.service)]
        for session in told[:MOST]:
            if session.number in self.context.connections:
                row = _row(session, now)
                rows.append(row)
                size += REST_OF_ROW + len(session.ends) + len(row["target"])
                if size > PART:
                    yield rows
                    rows, size = [], 0
        yield [*rows, *self._handed_off(service, now)]
        if len(told) > MOST:
            yield len(told) - MOST

    def _handed_off(self, service: str | None, now: float) -> list[Row]:
        """Return the sockets that programs have for themselves: `wait = true`."""
        return [
            row_of(_known(run.ends), listener.service.name, now - run.began, "running", None, "")
            for listener in self.context.sockets
            if isinstance(listener, ListenerHandoff) and service in (None, listener.service.name)
            for run in listener.runs
        ]

    def _sums(self) -> Iterator[dict[str, list[int]]]:
        """Yield for each service how many bytes came and went by now."""
        sums = {
            service.name: [service.counts[Count.BYTES_IN], service.counts[Count.BYTES_OUT]]
            for service in self.context.services
        }
        for session in self.context.connections.values():
            session.progress()  # brings its counters up to date
            received, sent = session.passed or (0, 0)
            of_service = sums[session.service]
            of_service[0] += received
            of_service[1] += sent
        names = list(sums)
        for first in range(0, len(names), MOST_SERVICES):
            yield {name: sums[name] for name in names[first : first + MOST_SERVICES]}


def _row(session: AccountedConnection, now: float) -> Row:
    session.progress()  # brings its counters up to date
    target = safe(session.target[0]) if session.target else ""
    known = _known(session.ends)
    return row_of(
        known, session.service, now - session.started, _state(session), session.passed, target
    )


def _known(ends: str) -> Row:
    """Return id, peer and local address, which the record has as JSON already."""
    known: Row = json.loads(f'{{"id":"{ends}}}')
    return known


def _state(session: AccountedConnection) -> str:
    if session.end not in (None, End.CLIENT):
        return "ending"
    if session.is_lost or (isinstance(session, ProtocolSession) and session.is_closing()):
        return "closing"
    return "open" if session.end is None else "half-closed"
