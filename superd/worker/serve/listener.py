"""Services whose plugin has the listening or datagram socket itself for a time: `wait = true`.

Runs in the worker, on the loop. Polls while nobody has the socket, and no more until the plugin has
returned; only one has it at a time, in all workers. Never spins: a datagram that started nothing is
thrown away, and who ends at once again and again while somebody waits is made to pause. Never
raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from functools import partial
from typing import Any

from superd.admission.gate import NO_SOURCE
from superd.admission.refusals import Refusal
from superd.admission.rules import NOBODY_KNOWN
from superd.admission.scoreboard import Count, refusal_column
from superd.net.addresses import Address
from superd.observe.connections import End, ends_of, safe
from superd.observe.records import Level, Record
from superd.plugin.service import Unavailable, Waiting
from superd.worker.runtime.accounting import endpoint_text
from superd.worker.runtime.context import Context
from superd.worker.runtime.scratch import SCRATCH
from superd.worker.runtime.service import WorkerService
from superd.worker.serve.session import report_failure

QUICK = 1.0  # seconds: who has ended by then has hardly done anything
AT_ONCE = 0.1  # seconds: what waits so soon after an end may be what waited before
MOST_QUICK = 10  # short runs that follow each other at once, and then a pause
PAUSE = 10.0
NEXT = 0.05  # seconds until the next look where several may have a datagram socket at once

_ACCEPTED = int(Count.ACCEPTED)
_DATAGRAMS = int(Count.DATAGRAMS)
_ERRORS = int(Count.ERRORS)


@dataclass(eq=False)
class Run:
    """One time that a plugin has the socket."""

    number: int
    where: str  # whose datagram is the first, if it is one
    ends: str
    began: float
    follows: bool  # at once, upon another run
    task: asyncio.Task[None] | None = None
    end: End | None = None  # the first reason there was, of which a cancellation may be one
    outcome: str = ""
    pause: float = 0.0


class ListenerHandoff:
    """One socket of such a service."""

    def __init__(
        self, context: Context, service: WorkerService, address: Address, sock: socket.socket
    ) -> None:
        self.context = context
        self.service = service
        self.address = address
        self.sock = sock
        self.is_datagram = address.transport.is_datagram
        self.runs: set[Run] = set()
        self.stopped = False
        self.quick = 0
        self.ended_at = float("-inf")  # by the loop's time, the last run

    def start(self) -> None:
        """Poll the socket."""
        if not self.stopped:
            self.context.loop.add_reader(self.sock, self._ready)

    def stop(self) -> None:
        """Poll no more; who has the socket may finish."""
        self.stopped = True
        self.context.loop.remove_reader(self.sock)
        if not self.runs:
            self.sock.close()

    def cancel(self, end: End, number: int | None = None) -> bool:
        """End the run of this number, or all of them; tell whether there was any."""
        found = [run for run in self.runs if number in (None, run.number)]
        for run in found:
            run.end = run.end or end
            if run.task is not None:
                run.task.cancel()
        return bool(found)

    def _ready(self) -> None:
        peer = self._first_peer() if self.is_datagram else None
        if self.is_datagram:
            if peer is None:
                return
            refusal = self.service.gate.admit_datagram(peer[0] if peer else NOBODY_KNOWN)
            if refusal is not None:
                self._refuse(refusal, peer)
                return
        if self.service.entry.wait and (delay := self.service.gate.reserve()):
            self._poll_again_in(delay / 1e9)
            return
        self.context.loop.remove_reader(self.sock)
        run = self._begun(peer)
        self.runs.add(run)
        run.task = self.context.loop.create_task(self._run(run, peer))
        run.task.add_done_callback(partial(self._ended, run))
        if not self.service.entry.wait:
            self._poll_again_in(NEXT)

    def _first_peer(self) -> Any:
        """Return who has sent the datagram that waits; None where there is none after all."""
        try:
            return self.sock.recvfrom(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)[1] or ()
        except OSError:
            return None  # it was about an earlier answer, and is told once

    def _refuse(self, refusal: Refusal, peer: Any) -> None:
        self._throw_away()
        self.service.counts[refusal_column(refusal)] += 1
        where = endpoint_text(self.address.transport, peer)
        self.service.records.refused(where, safe(str(self.address)), refusal.value)

    def _throw_away(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.recv_into(SCRATCH, 0, socket.MSG_DONTWAIT)

    def _poll_again_in(self, seconds: float) -> None:
        self.context.loop.remove_reader(self.sock)
        self.context.loop.call_later(seconds, self.start)

    def _begun(self, peer: Any) -> Run:
        """Book a run, before the plugin has begun."""
        context, service = self.context, self.service
        number, now = context.accounting.next_number(), context.loop.time()
        where = "" if peer is None else endpoint_text(self.address.transport, peer)
        ends = ends_of(context.accounting.id_of(number), where, safe(str(self.address)))
        context.held += 1
        service.counts[_DATAGRAMS if self.is_datagram else _ACCEPTED] += 1
        service.records.accepted(ends)
        return Run(number, where, ends, now, now - self.ended_at < AT_ONCE)

    async def _run(self, run: Run, peer: Any) -> None:
        context, service, address = self.context, self.service, self.address
        assert service.listener is not None
        connection = context.accounting.id_of(run.number)

        def log(level: Level, text: str) -> None:
            context.report(Record(level, text, service.name, connection, run.where))

        whose = None if peer is None else Address.from_sockaddr(address.transport, peer)
        end = End.SERVER
        try:
            run.outcome = await service.listener(self.sock, Waiting(address, whose, log))
        except Unavailable as error:
            log("error", str(error))
            service.counts[_ERRORS] += 1
            end, run.pause = End.ERROR, error.pause
        except asyncio.CancelledError:
            end = End.DRAIN
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            end = End.ERROR
            report_failure(context, service, error, connection, whose or address)
        if end is End.ERROR and self.is_datagram:
            self._throw_away()
        run.end = run.end or end

    def _ended(self, run: Run, _: asyncio.Task[None]) -> None:
        """Strike a run off; also one that was cancelled before it began, so that nothing ran."""
        context, service = self.context, self.service
        self.runs.discard(run)
        duration = context.accounting.count(service, run.began, 0, 0)
        self.ended_at = run.began + duration
        end = run.end or End.DRAIN
        service.records.closed(run.ends, duration, None, None, end.value, run.outcome)
        if service.entry.wait:
            service.release(NO_SOURCE)
        self._go_on(run, duration)
        context.held -= 1
        context.end_if_drained()

    def _go_on(self, run: Run, duration: float) -> None:
        """Poll again, but not for ever for somebody who ends at once."""
        pause = run.pause
        self.quick = 0 if duration >= QUICK else self.quick + 1 if run.follows else 1
        if self.quick >= MOST_QUICK and not pause:
            self.quick, pause = 0, PAUSE
            text = f"it ended at once {MOST_QUICK} times in a row, and pauses for {PAUSE:.0f} s"
            self.context.report(Record("error", text, self.service.name))
        if self.stopped:
            self.sock.close()
        elif self.service.entry.wait or pause:
            self._poll_again_in(pause)
