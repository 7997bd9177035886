"""Numbers, times, counts, records and releases the connections of one worker.

Runs in the worker, on the loop. Sessions of every kind, answers that need no session, and listeners
that a plugin has for itself all do it here. Never raises.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from superd.admission.gate import Ticket
from superd.admission.scoreboard import Count, duration_column
from superd.net.addresses import Address, Transport
from superd.observe.connections import End, ends_of, safe
from superd.worker.runtime.service import WorkerService

NO_SLOT: Ticket = (-1,)  # of a connection that has released its slots in the limits already

# as plain numbers: they are used for each connection
_BYTES_IN = int(Count.BYTES_IN)
_BYTES_OUT = int(Count.BYTES_OUT)
_SHORTEST = duration_column(0.0)

ACCOUNTED_SLOTS = (
    "_ends", "active_at", "end", "local_text", "number", "outcome", "received", "seen", "sent",
    "sockaddr", "started", "target", "task", "ticket", "transport_kind", "worker_service",
)  # fmt: skip


class AccountedConnection:
    """What is known of one connection while it is open.

    `received` and `sent` count bytes; `started` and `active_at` are the loop's time; `seen` is how
    many bytes both ways had passed at `active_at`. `end` is how the connection ended, where that
    was not by the service; `local_text` is our address, as the record has it.
    """

    worker_service: WorkerService
    number: int
    transport_kind: Transport
    sockaddr: Any
    ticket: Ticket
    local_text: str
    end: End | None
    _ends: str
    outcome: str
    received: int
    sent: int
    started: float
    active_at: float
    seen: int
    task: asyncio.Task[None] | None  # that runs the plugin's coroutine
    target: tuple[str, float] | None  # the target's name, and the seconds that connecting took

    # Subclasses have the slots, by ACCOUNTED_SLOTS: one that is an asyncio.Transport too could not
    # inherit any. Not a literal, as mypy would take that for all there is.
    __slots__ = tuple[str, ...]()

    @property
    def ends(self) -> str:
        """What each event of the connection begins with; made when the first event needs it."""
        if not self._ends:
            peer = endpoint_text(self.transport_kind, self.sockaddr)
            self._ends = ends_of(self.id, peer, self.local_text)
        return self._ends

    @property
    @abstractmethod
    def id(self) -> str:
        """A name that no other connection of this superd has."""

    @property
    def service(self) -> str:
        return self.worker_service.name

    @property
    def peer(self) -> Address:
        return Address.from_sockaddr(self.transport_kind, self.sockaddr)

    @property
    @abstractmethod
    def is_lost(self) -> bool:
        """Whether the connection is closed, so that only the plugin may still run."""

    @abstractmethod
    def expire(self, end: End) -> None:
        """Close at once, but not as a failure: a time-out or the end of draining."""

    def progress(self) -> tuple[int, int]:
        """Bring the counters up to date; return the bytes received and sent."""
        return self.received, self.sent

    @property
    def byte_counts(self) -> tuple[int, int] | None:
        """The bytes received and sent when they were last counted; None if they are unknown."""
        return self.received, self.sent

    def release_slots(self) -> None:
        """Stop counting against the limits."""
        if self.ticket is not NO_SLOT:
            self.worker_service.gate.leave(self.ticket)
            self.ticket = NO_SLOT


class Accounting:
    """Accounts for the connections of one worker. `serial` is unique among the workers of one
    master; `clock` is the loop's time; `connections` is the table of open ones, by number.
    """

    def __init__(
        self,
        serial: int,
        clock: Callable[[], float],
        connections: dict[int, AccountedConnection],
    ) -> None:
        self._serial = serial
        self._clock = clock
        self._connections = connections
        self._last_number = 0

    def next_number(self) -> int:
        """Return the number of a new connection."""
        self._last_number += 1
        return self._last_number

    def id_of(self, number: int) -> str:
        """Return a name that no other connection of this superd has."""
        return f"{self._serial:x}-{number:x}"

    def open(self, connection: AccountedConnection) -> None:
        """Number and time a connection, and record that it was accepted, unless the record has to
        wait for the start of a program.
        """
        connection.number = number = self._last_number = self._last_number + 1
        self._connections[number] = connection
        connection.started = connection.active_at = self._clock()
        service = connection.worker_service
        if service.records.wants_any and not service.plugin.runs_programs:
            service.records.accepted(connection.ends)

    def close(self, connection: AccountedConnection) -> None:
        """Count and record that a connection is over, and release its slots; once."""
        if self._connections.pop(connection.number, None) is None:
            return
        service = connection.worker_service
        received, sent = connection.byte_counts or (None, None)
        duration = self.count(service, connection.started, received or 0, sent or 0)
        if service.records.wants_any:
            end = "server" if connection.end is None else connection.end.value
            service.records.closed(
                connection.ends,
                duration,
                received,
                sent,
                end,
                connection.outcome,
                connection.target,
            )
        connection.release_slots()
        if service.waiting:
            service.resume()

    def count(self, service: WorkerService, started: float, received: int, sent: int) -> float:
        """Count the bytes and the duration of what has ended; return the duration in seconds."""
        counts = service.counts
        counts[_BYTES_IN] += received
        counts[_BYTES_OUT] += sent
        duration = self._clock() - started
        counts[duration_column(duration)] += 1
        return duration

    def answered(
        self,
        service: WorkerService,
        kind: Transport,
        sockaddr: Any,
        local: str,
        sent: int,
        end: End,
    ) -> str:
        """Number, count and record a connection that is over as soon as it was accepted; return its
        id.
        """
        service.counts[_BYTES_OUT] += sent
        service.counts[_SHORTEST] += 1
        self._last_number += 1
        connection = self.id_of(self._last_number)
        ends = ends_of(connection, endpoint_text(kind, sockaddr), local)
        service.records.answered(ends, sent, end.value)
        return connection


def endpoint_text(kind: Transport, sockaddr: Any) -> str:
    """Return what accept(2) or getsockname(2) gave, for an event: `127.0.0.1:7`, `[::1]:7`."""
    if kind is Transport.TCP or kind is Transport.UDP:
        host = sockaddr[0]
        if ":" not in host:
            return f"{host}:{sockaddr[1]}"
    return safe(Address.from_sockaddr(kind, sockaddr).endpoint)
