"""The master's requests to a worker: list its connections, count their bytes, close one, release
the listeners that plugins have, or replace the files of plugins after a rotation.

Runs in the worker, on the loop. A long answer is sent in parts, one per turn of the loop, so that
clients are not delayed. A part that does not fit into the channel is retried. Never raises.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from typing import Any

from superd.admission.scoreboard import Count
from superd.observe.connections import End, safe
from superd.observe.listing import MAX_ROWS, Row, row_of
from superd.worker import channel
from superd.worker.channel import Channel
from superd.worker.runtime.accounting import AccountedConnection
from superd.worker.runtime.appended_files import AppendedFiles
from superd.worker.runtime.context import Context
from superd.worker.serve.listener import ListenerHandoff
from superd.worker.serve.stream import ProtocolSession

MAX_PART_SIZE = 8 * 1024  # bytes of connections in one part; sending one takes less than 1 ms
MAX_SERVICES_PER_PART = 200
FIXED_ROW_SIZE = 200  # bytes of a row, apart from its texts
SEND_RETRY_INTERVAL = 0.02  # seconds
ANSWER_TIMEOUT = 5.0  # seconds that a whole answer may take; the master gives up long before

Release = Callable[[Collection[str]], Collection[asyncio.Task[None]]]


class Commands:
    """The handlers of the master's requests, in `by_kind`. `release` is the engine's."""

    def __init__(
        self,
        context: Context,
        channel_: Channel,
        files: AppendedFiles,
        renew_processes: Callable[[], None],
        release: Release,
    ) -> None:
        self.context = context
        self.channel = channel_
        self._files = files
        self._renew_processes = renew_processes
        self._release_listeners = release
        self.by_kind: dict[str, Callable[..., None]] = {
            channel.CONNECTIONS: self._connections,
            channel.KILL: self._kill,
            channel.TRAFFIC: self._traffic,
            channel.REOPEN: self._reopen,
            channel.RELEASE: self._release,
        }
        self._tasks: set[asyncio.Task[None]] = set()

    def _connections(self, inquiry: int, service: str | None) -> None:
        self._start(self._send(inquiry, self._parts(service)))

    def _kill(self, inquiry: int, number: int, serial: int) -> None:
        found = serial == self.context.serial and self._close(number)
        self._start(self._send(inquiry, iter([found])))

    def _close(self, number: int) -> bool:
        """Close a connection as a time-out would; return whether it was open."""
        session = self.context.connections.get(number)
        if session is not None:
            if session.end is End.CLIENT:  # it has only shut down its sending side
                session.end = End.KILLED
            session.expire(End.KILLED)
        handoffs = (one for one in self.context.sockets if isinstance(one, ListenerHandoff))
        return session is not None or any(one.cancel(End.KILLED, number) for one in handoffs)

    def _traffic(self, inquiry: int) -> None:
        self._start(self._send(inquiry, self._sums()))

    def _reopen(
        self, inquiry: int, numbers: Sequence[int], is_last: bool, files: Sequence[int] = ()
    ) -> None:
        """Replace files of plugins, and the processes that have copies of the old ones."""
        has_all = self._files.replace(numbers, files)
        self._start(self._send(inquiry, iter([has_all]), is_last=is_last))
        if is_last:
            self._renew_processes()

    def _release(self, inquiry: int, services: list[str]) -> None:
        self._start(self._send_released(inquiry, self._release_listeners(services)))

    async def _send_released(self, inquiry: int, ending: Collection[asyncio.Task[None]]) -> None:
        if ending:
            await asyncio.wait(ending)
        await self._send(inquiry, iter(()))

    def _start(self, sending: Coroutine[Any, Any, None]) -> None:
        task = self.context.loop.create_task(sending)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, inquiry: int, parts: Iterator[object], *, is_last: bool = True) -> None:
        """Send the parts, then a message that marks the end if they are the last."""
        end = self.context.loop.time() + ANSWER_TIMEOUT
        for part in parts:
            while not self.channel.answer(inquiry, part, is_last=False):
                if self.context.loop.time() > end:
                    return
                await asyncio.sleep(SEND_RETRY_INTERVAL)
            await asyncio.sleep(0)
        while is_last and not self.channel.answer(inquiry, None, is_last=True):
            if self.context.loop.time() > end:
                return
            await asyncio.sleep(SEND_RETRY_INTERVAL)

    def _parts(self, service: str | None) -> Iterator[list[Row] | int]:
        """Yield rows of the connections that are open now and still open when their part is made;
        then how many are left out, if the list is too long.
        """
        now = self.context.loop.time()
        rows: list[Row] = []
        size = 0
        sessions = self.context.connections.values()
        listed = [one for one in sessions if service in (None, one.service)]
        for session in listed[:MAX_ROWS]:
            if session.number in self.context.connections:
                row = _row(session, now)
                rows.append(row)
                size += FIXED_ROW_SIZE + len(session.ends) + len(row["target"])
                if size > MAX_PART_SIZE:
                    yield rows
                    rows, size = [], 0
        yield [*rows, *self._handed_off(service, now)]
        if len(listed) > MAX_ROWS:
            yield len(listed) - MAX_ROWS

    def _handed_off(self, service: str | None, now: float) -> list[Row]:
        """Return rows of the sockets that plugins have at the moment."""
        return [
            row_of(_known(run.ends), listener.service.name, now - run.began, "running", None, "")
            for listener in self.context.sockets
            if isinstance(listener, ListenerHandoff) and service in (None, listener.service.name)
            for run in listener.runs
        ]

    def _sums(self) -> Iterator[dict[str, list[int]]]:
        """Yield for each service the bytes received and sent so far, open connections included."""
        sums = {
            service.name: [service.counts[Count.BYTES_IN], service.counts[Count.BYTES_OUT]]
            for service in self.context.services
        }
        for session in self.context.connections.values():
            session.progress()  # updates its counters
            received, sent = session.byte_counts or (0, 0)
            of_service = sums[session.service]
            of_service[0] += received
            of_service[1] += sent
        names = list(sums)
        for first in range(0, len(names), MAX_SERVICES_PER_PART):
            yield {name: sums[name] for name in names[first : first + MAX_SERVICES_PER_PART]}


def _row(session: AccountedConnection, now: float) -> Row:
    session.progress()  # updates its counters
    target = safe(session.target[0]) if session.target else ""
    known = _known(session.ends)
    return row_of(
        known, session.service, now - session.started, _state(session), session.byte_counts, target
    )


def _known(ends: str) -> Row:
    """Return id, peer and local address, which an event has as JSON already."""
    known: Row = json.loads(f'{{"id":"{ends}}}')
    known.pop("program", None)
    return known


def _state(session: AccountedConnection) -> str:
    if session.end not in (None, End.CLIENT):
        return "ending"
    if session.is_lost or (isinstance(session, ProtocolSession) and session.is_closing()):
        return "closing"
    return "open" if session.end is None else "half-closed"
