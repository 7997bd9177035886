"""One connection in a worker: who it is, what runs for it, how it ends.

Runs in the worker, on the loop. Whatever a plugin raises ends here: it is reported and costs this
connection only. Never raises.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from abc import abstractmethod
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from superd.admission.gate import Ticket
from superd.admission.scoreboard import Count, duration_column
from superd.net.addresses import Address, Transport
from superd.observe.connections import End, ends_of, safe
from superd.observe.records import Level, Record, failure, kind_of
from superd.plugin.service import Unavailable
from superd.worker.runtime.service import Serving

if TYPE_CHECKING:
    from superd.worker.engine import Engine

NOT_COUNTED: Ticket = (-1,)  # of a connection that has given its place back already

# as plain numbers: they are used for each connection
_ERRORS = int(Count.ERRORS)
_BYTES_IN = int(Count.BYTES_IN)
_BYTES_OUT = int(Count.BYTES_OUT)


SLOTS = (
    "_ends", "active_at", "end", "engine", "local_text", "number", "outcome", "received", "seen",
    "sent", "serving", "sockaddr", "started", "target", "task", "ticket", "transport_kind",
)  # fmt: skip


class Session:
    """What all kinds of connection have in common.

    `received` and `sent` count bytes; `started` and `active_at` are the loop's time. `end` is how
    it ended, where that was not by the service; `local_text` is our address, as the record has it.
    """

    engine: Engine
    serving: Serving
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
    task: asyncio.Task[None] | None
    target: tuple[str, float] | None  # who serves it, and the seconds that it took to connect

    # The subclasses have the slots, by SLOTS: one that is an asyncio.Transport too could not
    # inherit any. Not a literal, as mypy would take that for all there is.
    __slots__ = tuple[str, ...]()

    def begin(
        self,
        engine: Engine,
        serving: Serving,
        kind: Transport,
        sockaddr: Any,
        ticket: Ticket,
        local: str,
    ) -> None:
        """Enter the books. `sockaddr` is what accept(2) told: getpeername(2) may fail by now;
        `local` is our own address, as the record has it.
        """
        self.engine = engine
        self.serving = serving
        self.transport_kind = kind
        self.sockaddr = sockaddr
        self.ticket = ticket
        self.end = None
        self.outcome = ""
        self.received = self.sent = self.seen = 0
        self.task = self.target = None
        self.number = engine.enter(self)
        self.started = self.active_at = engine.loop.time()
        self.local_text = local
        self._ends = ""
        if serving.records.wants_any:
            serving.records.accepted(self.ends)

    @property
    def ends(self) -> str:
        """What the record says in each event: made when somebody wants to know it."""
        if not self._ends:
            peer = endpoint_text(self.transport_kind, self.sockaddr)
            self._ends = ends_of(self.id, peer, self.local_text)
        return self._ends

    @property
    def id(self) -> str:
        return connection_id(self.engine, self.number)

    @property
    def service(self) -> str:
        return self.serving.name

    @property
    def peer(self) -> Address:
        return Address.of_socket(self.transport_kind, self.sockaddr)

    @property
    def local(self) -> Address:
        sock = self.raw_socket()
        if sock is None:
            return Address(self.transport_kind)
        return Address.of_socket(self.transport_kind, sock.getsockname())

    @abstractmethod
    def raw_socket(self) -> socket.SocketType | None:
        """Return the connection's socket, or what stands for it; None once it is closed."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once; the client sees a reset."""

    @abstractmethod
    def finish(self) -> None:
        """Close after the plugin has returned."""

    @abstractmethod
    def expire(self, end: End) -> None:
        """Close at once, but not as a failure: a time-out or the end of draining."""

    @property
    @abstractmethod
    def is_lost(self) -> bool:
        """Whether the connection is closed, so that only the plugin may still run."""

    def run(self, talk: Coroutine[Any, Any, None]) -> None:
        """Run the plugin's coroutine for this connection, then finish."""
        self.task = self.engine.loop.create_task(self._contained(talk))
        self.task.add_done_callback(partial(self._talked, talk))

    async def _contained(self, talk: Coroutine[Any, Any, None]) -> None:
        try:
            await talk
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            if self.engine.is_copy:
                self._report(error)
            elif not self._is_expected(error):
                self.contain(error)
        if self.engine.is_copy:
            os._exit(0)  # the plugin has forked, and both came back

    def _talked(self, talk: Coroutine[Any, Any, None], _: asyncio.Task[None]) -> None:
        """End the session; also one that was cancelled before it began, so that nothing ran."""
        talk.close()
        self.task = None
        self.finish()
        if self.is_lost:
            self.leave()

    def _is_expected(self, error: BaseException) -> bool:
        """Tell whether the plugin was cancelled from outside or its client has gone: no mistake."""
        if isinstance(error, BaseExceptionGroup):
            return all(map(self._is_expected, error.exceptions))
        if isinstance(error, asyncio.CancelledError):
            return self.task is not None and self.task.cancelling() > 0
        return isinstance(error, ConnectionError) and self.has_gone

    def progress(self) -> tuple[int, int]:
        """Return how many bytes came and went."""
        return self.received, self.sent

    @property
    def passed(self) -> tuple[int, int] | None:
        """How many bytes came and went when they were last counted; None where nobody knows."""
        return self.received, self.sent

    @property
    def has_gone(self) -> bool:
        """Whether the client has broken the connection."""
        return self.is_lost

    def contain(self, error: BaseException) -> None:
        """Report what a plugin raised and reset the connection: its output may be cut short."""
        self.end = self.end or End.ERROR
        try:
            self._report(error)
        finally:  # without memory there is no report
            if isinstance(error, Unavailable):
                self.finish()
            else:
                self.abort()

    def _report(self, error: BaseException) -> None:
        if not isinstance(error, Unavailable):
            report_failure(self.engine, self.serving, error, self.id, self.peer)
            return
        text, where = str(error), self.peer.endpoint
        record = Record("error", text, self.serving.name, self.id, where)
        count_failure(self.engine, self.serving, record, text)
        self.engine.pause(self.serving, error.pause)

    def note(self, outcome: str) -> None:
        self.outcome = outcome

    def log(self, level: Level, text: str) -> None:
        if not self.engine.threshold.admits(level):
            return
        where = self.peer.endpoint
        self.engine.report(Record(level, text, self.serving.name, self.id, where))

    def leave(self) -> None:
        """Leave the books, once."""
        if self.engine.leave(self):
            serving = self.serving
            counts = serving.counts
            received, sent = self.passed or (None, None)
            counts[_BYTES_IN] += received or 0
            counts[_BYTES_OUT] += sent or 0
            duration = self.engine.loop.time() - self.started
            counts[duration_column(duration)] += 1
            if serving.records.wants_any:
                end = "server" if self.end is None else self.end.value
                serving.records.closed(
                    self.ends, duration, received, sent, end, self.outcome, self.target
                )
            self.give_place_back()
            if serving.waiting:
                serving.resume()

    def linger(self, sock: socket.SocketType) -> None:
        """Say that nothing more is sent, and have the socket closed once the client has done so;
        until then it is counted by limits.
        """
        has_place = self.ticket is not NOT_COUNTED
        ticket, self.ticket = self.ticket, NOT_COUNTED
        self.engine.lingering.finish(sock, self.serving if has_place else None, ticket)

    def give_place_back(self) -> None:
        """Be counted by limits no more."""
        if self.ticket is not NOT_COUNTED:
            self.serving.gate.leave(self.ticket)
            self.ticket = NOT_COUNTED


def endpoint_text(kind: Transport, sockaddr: Any) -> str:
    """Return what accept(2) or getsockname(2) gave, for an event: `127.0.0.1:7`, `[::1]:7`."""
    if kind is Transport.TCP or kind is Transport.UDP:
        host = sockaddr[0]
        if ":" not in host:
            return f"{host}:{sockaddr[1]}"
    return safe(Address.of_socket(kind, sockaddr).endpoint)


def connection_id(engine: Engine, number: int) -> str:
    """Return a name that no other connection of this superd has."""
    return f"{engine.serial:x}-{number:x}"


def report_failure(
    engine: Engine, serving: Serving, error: BaseException, connection: str, peer: Address
) -> None:
    """Count and log what a plugin raised."""
    message = f"plugin {serving.plugin.name} failed"
    where = peer.endpoint
    record = failure(message, error, service=serving.name, connection=connection, peer=where)
    count_failure(engine, serving, record, *kind_of(error))
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        engine.loop.call_soon(engine.check_descriptors)


def count_failure(engine: Engine, serving: Serving, record: Record, *kind: object) -> None:
    """Count a failure, and log its record unless many of its kind have come."""
    serving.counts[_ERRORS] += 1
    engine.flood_gate.report((serving.name, *kind), record)
