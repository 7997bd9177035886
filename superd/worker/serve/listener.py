"""Services whose plugin gets the listening or datagram socket itself for a while: with
`wait = true`, and for datagrams where the plugin has no other method.

Runs in the worker, on the loop. Polls the socket until a client is pending, then hands it to the
plugin. With `wait = true` it is polled again once the plugin has returned, and one worker at a time
polls it or has a plugin that has it, also while generations overlap; the service's other sockets
are independent of it. Never spins: a datagram for which the plugin failed is discarded, and a
plugin that returns quickly many times in a row, while clients are pending, is paused. Never raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass
from functools import partial
from typing import Any

from superd.admission.gate import NO_SOURCE
from superd.admission.ledger import Lock
from superd.admission.refusals import Refusal
from superd.admission.rules import NOBODY_KNOWN
from superd.admission.scoreboard import Count, refusal_column
from superd.net.addresses import Address
from superd.observe.connections import End, ends_of, safe
from superd.observe.records import Level, Record
from superd.plugin.service import HANDED_BY, Unavailable, Waiting
from superd.worker.runtime.accounting import endpoint_text
from superd.worker.runtime.context import Context
from superd.worker.runtime.scratch import SCRATCH
from superd.worker.runtime.service import WorkerService
from superd.worker.serve.session import report_failure

SHORT_RUN = 1.0  # seconds; a shorter run has probably served no client
FOLLOW_UP_TIME = 0.1  # seconds; a client pending so soon after a run may be the one before
MAX_SHORT_RUNS = 10  # that follow each other at once, before the plugin is paused
SHORT_RUN_PAUSE = 10.0  # seconds
SHARED_POLL_INTERVAL = 0.05  # seconds, where several runs may have a datagram socket at once
LOCK_RETRY_INTERVAL = 0.1  # seconds, while a worker of another generation has the socket

_ACCEPTED = int(Count.ACCEPTED)
_DATAGRAMS = int(Count.DATAGRAMS)
_ERRORS = int(Count.ERRORS)


@dataclass(eq=False)
class Run:
    """One time that a plugin has the socket."""

    number: int
    peer: str  # that has sent the first datagram; "" for a listening socket
    ends: str
    began: float
    follows: bool  # whether it began right after another run
    task: asyncio.Task[None] | None = None
    end: End | None = None  # the first reason to end, which may be a cancellation
    outcome: str = ""
    pause: float = 0.0


class ListenerHandoff:
    """Hands one socket of such a service to its plugin."""

    def __init__(
        self, context: Context, service: WorkerService, address: Address, sock: socket.socket
    ) -> None:
        self.context = context
        self.service = service
        self.address = address
        self.sock = sock
        self.is_datagram = address.transport.is_datagram
        self.waits = service.entry.wait
        # held until it stops; no other listener has a lock at the offset of this inode
        self.lock = Lock(service.gate.lock.descriptor, os.fstat(sock.fileno()).st_ino)
        self.runs: set[Run] = set()
        self.is_stopped = False
        self.short_runs = 0  # in a row
        self.ended_at = float("-inf")  # when the last run ended, by the loop's time

    def start(self) -> None:
        """Poll the socket, once no other worker does."""
        if self.is_stopped:
            return
        if self.waits and not self.lock.acquire_now():
            self.context.loop.call_later(LOCK_RETRY_INTERVAL, self.start)
            return
        self.service.scope.run(self.context.loop.add_reader, self.sock, self._on_readable)
        if self.runs:
            self.sock.setblocking(True)  # as programs expect it; libuv has changed it

    def stop(self) -> None:
        """Stop polling, and close the socket here once no plugin has it."""
        if not self.is_stopped:
            self.is_stopped = True
            self.context.loop.remove_reader(self.sock)
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if not self.runs:
            self.sock.close()
            self.lock.release()

    def cancel(self, end: End, number: int | None = None) -> list[asyncio.Task[None]]:
        """Cancel the run of this number, or all runs; return their tasks."""
        found = [run for run in self.runs if number in (None, run.number)]
        tasks = [run.task for run in found if run.task is not None]
        for run in found:
            run.end = run.end or end
        for task in tasks:
            if not task.cancelling():  # a second cancellation would interrupt its cleaning up
                task.cancel()
        return tasks

    def _on_readable(self) -> None:
        peer = self._first_peer() if self.is_datagram else None
        if (self.is_datagram and peer is None) or not self._is_admitted(peer):
            return
        self.context.loop.remove_reader(self.sock)
        run = self._begin(peer)
        self.runs.add(run)
        run.task = self.context.loop.create_task(self._run(run, peer))
        run.task.add_done_callback(partial(self._ended, run))
        if not self.waits:
            self._resume_in(SHARED_POLL_INTERVAL)

    def _is_admitted(self, peer: Any) -> bool:
        """Return whether the plugin may run now; refuse the pending datagram, or poll again later,
        if it may not.
        """
        gate = self.service.gate
        if self.waits and (delay := gate.reserve_for_handoff()):
            self._resume_in(delay / 1e9)
            return False
        if self.is_datagram:
            refusal = gate.admit_datagram(peer[0] if peer else NOBODY_KNOWN)
            if refusal is not None:
                self._refuse(refusal, peer)
                gate.unreserve()
                return False
        gate.use_reserved()
        return True

    def _first_peer(self) -> Any:
        """Return the sender of the pending datagram; None if there is none after all."""
        try:
            return self.sock.recvfrom(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)[1] or ()
        except OSError:
            return None  # an error of an earlier answer, which the kernel reports once

    def _refuse(self, refusal: Refusal, peer: Any) -> None:
        self._discard_datagram()
        self.service.counts[refusal_column(refusal)] += 1
        where = endpoint_text(self.address.transport, peer)
        self.service.records.refused(where, safe(str(self.address)), refusal.value)

    def _discard_datagram(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.recv_into(SCRATCH, 0, socket.MSG_DONTWAIT)

    def _resume_in(self, seconds: float) -> None:
        self.context.loop.remove_reader(self.sock)
        self.context.loop.call_later(seconds, self.start)

    def _begin(self, peer: Any) -> Run:
        """Account for a run, before the plugin runs."""
        context, service = self.context, self.service
        number, now = context.accounting.next_number(), context.loop.time()
        peer_text = "" if peer is None else endpoint_text(self.address.transport, peer)
        ends = ends_of(context.accounting.id_of(number), peer_text, safe(str(self.address)))
        context.held += 1
        service.counts[_DATAGRAMS if self.is_datagram else _ACCEPTED] += 1
        service.records.accepted(ends)
        return Run(number, peer_text, ends, now, now - self.ended_at < FOLLOW_UP_TIME)

    async def _run(self, run: Run, peer: Any) -> None:
        context, service, address = self.context, self.service, self.address
        assert service.listener is not None
        connection = context.accounting.id_of(run.number)

        def log(level: Level, text: str) -> None:
            context.report(Record(level, text, service.name, connection, run.peer))

        sender = None if peer is None else Address.from_sockaddr(address.transport, peer)
        end = End.SERVER
        try:
            waiting = Waiting(address, sender, log, {HANDED_BY: context.configuration})
            run.outcome = await service.listener(self.sock, waiting)
        except Unavailable as error:
            log("error", str(error))
            service.counts[_ERRORS] += 1
            end, run.pause = End.ERROR, error.pause
        except asyncio.CancelledError:
            end = End.DRAIN
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            end = End.ERROR
            report_failure(context, service, error, connection, sender or address)
        if end is End.ERROR and self.is_datagram:
            self._discard_datagram()
        run.end = run.end or end

    def _ended(self, run: Run, _: asyncio.Task[None]) -> None:
        """Account for the end of a run. Called also if it was cancelled before its first step."""
        context, service = self.context, self.service
        self.runs.discard(run)
        duration = context.accounting.count(service, run.began, 0, 0)
        self.ended_at = run.began + duration
        end = run.end or End.DRAIN
        service.records.closed(run.ends, duration, None, None, end.value, run.outcome)
        if self.waits:
            service.release(NO_SOURCE)
        self._resume(run, duration)
        context.held -= 1
        context.end_if_drained()

    def _resume(self, run: Run, duration: float) -> None:
        """Poll again; after too many short runs in a row, pause first."""
        pause = run.pause
        self.short_runs = 0 if duration >= SHORT_RUN else self.short_runs + 1 if run.follows else 1
        if self.short_runs >= MAX_SHORT_RUNS and not pause:
            self.short_runs, pause = 0, SHORT_RUN_PAUSE
            text = (
                f"it ended right after its start {MAX_SHORT_RUNS} times in a row; superd starts it"
                f" again in {SHORT_RUN_PAUSE:.0f} s"
            )
            self.context.report(Record("error", text, self.service.name))
        if self.is_stopped:
            self._close_if_unused()
        elif self.waits or pause:
            self._resume_in(pause)
