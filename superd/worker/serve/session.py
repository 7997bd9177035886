"""One connection in a worker: what the plugin runs for it, and how it ends.

Runs in the worker, on the loop. Contains whatever a plugin raises: it is reported and costs this
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
from typing import Any

from superd.admission.gate import Ticket
from superd.admission.scoreboard import Count
from superd.net.addresses import Address, Transport
from superd.observe.connections import End
from superd.observe.records import Level, Record, failure, kind_of
from superd.plugin.service import Unavailable
from superd.worker.runtime.accounting import ACCOUNTED_SLOTS, NO_SLOT, AccountedConnection
from superd.worker.runtime.context import Context
from superd.worker.runtime.service import WorkerService

_ERRORS = int(Count.ERRORS)

SLOTS = (*ACCOUNTED_SLOTS, "context")


class Session(AccountedConnection):
    """What all kinds of connection have in common."""

    context: Context

    __slots__ = tuple[str, ...]()  # see AccountedConnection

    def begin(
        self,
        context: Context,
        service: WorkerService,
        kind: Transport,
        sockaddr: Any,
        ticket: Ticket,
        local: str,
    ) -> None:
        """Start accounting for the connection. `sockaddr` is what accept(2) returned, as
        getpeername(2) may fail by now; `local` is our own address, as the record has it.
        """
        self.context = context
        self.worker_service = service
        self.transport_kind = kind
        self.sockaddr = sockaddr
        self.ticket = ticket
        self.local_text = local
        self.end = None
        self._ends = self.outcome = ""
        self.received = self.sent = self.seen = 0
        self.task = self.target = None
        context.accounting.open(self)

    @property
    def id(self) -> str:
        return self.context.accounting.id_of(self.number)

    @property
    def local(self) -> Address:
        sock = self.raw_socket()
        if sock is None:
            return Address(self.transport_kind)
        return Address.from_sockaddr(self.transport_kind, sock.getsockname())

    @abstractmethod
    def raw_socket(self) -> socket.SocketType | None:
        """Return the connection's socket or its equivalent; None once it is closed."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once; the client sees a reset."""

    @abstractmethod
    def finish(self) -> None:
        """Close after the plugin has returned."""

    def run(self, handler: Coroutine[Any, Any, None]) -> None:
        """Run the plugin's coroutine for this connection, then finish."""
        # not by the loop's create_task, which is for code whose failures are not contained
        self.task = asyncio.Task(self._contained(handler), loop=self.context.loop)
        self.task.add_done_callback(partial(self._handler_done, handler))

    async def _contained(self, handler: Coroutine[Any, Any, None]) -> None:
        try:
            await handler
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            if self.context.is_copy:
                self._report(error)
            elif not self._is_expected(error):
                self.contain(error)
        if self.context.is_copy:
            os._exit(0)  # the plugin has forked, and its coroutine returned in both processes

    def _handler_done(self, handler: Coroutine[Any, Any, None], _: asyncio.Task[None]) -> None:
        """End the session. Called also for a task that was cancelled before its first step."""
        handler.close()
        self.task = None
        self.finish()
        if self.is_lost:
            self.leave()

    def _is_expected(self, error: BaseException) -> bool:
        """Return whether the plugin was cancelled by superd, or its client broke the connection."""
        if isinstance(error, BaseExceptionGroup):
            return all(map(self._is_expected, error.exceptions))
        if isinstance(error, asyncio.CancelledError):
            return self.task is not None and self.task.cancelling() > 0
        return isinstance(error, ConnectionError) and self.is_broken

    @property
    def is_broken(self) -> bool:
        """Whether the client has broken the connection."""
        return self.is_lost

    def contain(self, error: BaseException) -> None:
        """Report what a plugin raised and reset the connection: its output may be cut short."""
        self.end = self.end or End.ERROR
        try:
            self._report(error)
        finally:  # without memory there may be no report
            if isinstance(error, Unavailable):
                self.finish()
            else:
                self.abort()

    def _report(self, error: BaseException) -> None:
        if not isinstance(error, Unavailable):
            report_failure(self.context, self.worker_service, error, self.id, self.peer)
            return
        text, where = str(error), self.peer.endpoint
        record = Record("error", text, self.worker_service.name, self.id, where)
        count_failure(self.context, self.worker_service, record, text)
        self.worker_service.pause(error.pause)

    def note(self, outcome: str) -> None:
        self.outcome = outcome

    def log(self, level: Level, text: str) -> None:
        if not self.context.threshold.admits(level):
            return
        where = self.peer.endpoint
        self.context.report(Record(level, text, self.worker_service.name, self.id, where))

    def leave(self) -> None:
        """End accounting for the connection; further calls do nothing."""
        try:
            self.context.accounting.close(self)
        finally:  # without memory there may be no record
            if self.context.is_draining:
                self.context.end_if_drained()

    def linger(self, sock: socket.SocketType) -> None:
        """Shut the socket down for sending, and close it once the client has closed as well. Until
        then it counts against every limit.
        """
        self.context.lingering.finish(sock, *self._take_slots())

    def deliver(self, sock: socket.SocketType) -> None:
        """Close the socket, which another process may use, so that no answer is lost. Until then
        it counts against every limit.
        """
        self.context.lingering.deliver(sock, *self._take_slots())

    def _take_slots(self) -> tuple[WorkerService | None, Ticket]:
        """Return the slots in the limits; the connection itself has none from now on."""
        has_slots = self.ticket is not NO_SLOT
        ticket, self.ticket = self.ticket, NO_SLOT
        return self.worker_service if has_slots else None, ticket


def report_failure(
    context: Context, service: WorkerService, error: BaseException, connection: str, peer: Address
) -> None:
    """Count and log what a plugin raised."""
    message = f"plugin {service.plugin.name} failed"
    where = peer.endpoint
    record = failure(message, error, service=service.name, connection=connection, peer=where)
    count_failure(context, service, record, *kind_of(error))
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        context.loop.call_soon(context.check_descriptors)


def count_failure(context: Context, service: WorkerService, record: Record, *kind: object) -> None:
    """Count a failure, and log its record unless many of its kind were logged already."""
    service.counts[_ERRORS] += 1
    context.flood_gate.report((service.name, *kind), record)
