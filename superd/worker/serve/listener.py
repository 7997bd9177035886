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
from typing import TYPE_CHECKING, Any

from superd.admission.gate import NO_SOURCE
from superd.admission.refusals import Refusal
from superd.admission.rules import NOBODY_KNOWN
from superd.admission.scoreboard import Count, duration_column, refusal_column
from superd.net.addresses import Address
from superd.observe.connections import End, ends_of, safe
from superd.observe.records import Level, Record
from superd.plugin.service import Unavailable, Waiting
from superd.worker.runtime.scratch import SCRATCH
from superd.worker.runtime.service import Serving
from superd.worker.serve.session import connection_id, endpoint_text, report_failure

if TYPE_CHECKING:
    from superd.worker.engine import Engine

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


class Handover:
    """One socket of such a service."""

    def __init__(
        self, engine: Engine, serving: Serving, address: Address, sock: socket.socket
    ) -> None:
        self.engine = engine
        self.serving = serving
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
            self.engine.loop.add_reader(self.sock, self._ready)

    def stop(self) -> None:
        """Poll no more; who has the socket may finish."""
        self.stopped = True
        self.engine.loop.remove_reader(self.sock)
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
            refusal = self.serving.gate.admit_datagram(peer[0] if peer else NOBODY_KNOWN)
            if refusal is not None:
                self._refuse(refusal, peer)
                return
        if self.serving.entry.wait and (delay := self.serving.gate.reserve()):
            self._poll_again_in(delay / 1e9)
            return
        self.engine.loop.remove_reader(self.sock)
        run = self._begun(peer)
        self.runs.add(run)
        run.task = self.engine.loop.create_task(self._run(run, peer))
        run.task.add_done_callback(partial(self._ended, run))
        if not self.serving.entry.wait:
            self._poll_again_in(NEXT)

    def _first_peer(self) -> Any:
        """Return who has sent the datagram that waits; None where there is none after all."""
        try:
            return self.sock.recvfrom(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)[1] or ()
        except OSError:
            return None  # it was about an earlier answer, and is told once

    def _refuse(self, refusal: Refusal, peer: Any) -> None:
        self._throw_away()
        self.serving.counts[refusal_column(refusal)] += 1
        where = endpoint_text(self.address.transport, peer)
        self.serving.records.refused(where, safe(str(self.address)), refusal.value)

    def _throw_away(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.recv_into(SCRATCH, 0, socket.MSG_DONTWAIT)

    def _poll_again_in(self, seconds: float) -> None:
        self.engine.loop.remove_reader(self.sock)
        self.engine.loop.call_later(seconds, self.start)

    def _begun(self, peer: Any) -> Run:
        """Book a run, before the plugin has begun."""
        engine, serving = self.engine, self.serving
        number, now = engine.next_number(), engine.loop.time()
        where = "" if peer is None else endpoint_text(self.address.transport, peer)
        ends = ends_of(connection_id(engine, number), where, safe(str(self.address)))
        engine.held += 1
        serving.counts[_DATAGRAMS if self.is_datagram else _ACCEPTED] += 1
        serving.records.accepted(ends)
        return Run(number, where, ends, now, now - self.ended_at < AT_ONCE)

    async def _run(self, run: Run, peer: Any) -> None:
        engine, serving, address = self.engine, self.serving, self.address
        assert serving.listener is not None
        connection = connection_id(engine, run.number)

        def log(level: Level, text: str) -> None:
            engine.report(Record(level, text, serving.name, connection, run.where))

        whose = None if peer is None else Address.of_socket(address.transport, peer)
        end = End.SERVER
        try:
            run.outcome = await serving.listener(self.sock, Waiting(address, whose, log))
        except Unavailable as error:
            log("error", str(error))
            serving.counts[_ERRORS] += 1
            end, run.pause = End.ERROR, error.pause
        except asyncio.CancelledError:
            end = End.DRAIN
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            end = End.ERROR
            report_failure(engine, serving, error, connection, whose or address)
        if end is End.ERROR and self.is_datagram:
            self._throw_away()
        run.end = run.end or end

    def _ended(self, run: Run, _: asyncio.Task[None]) -> None:
        """Strike a run off; also one that was cancelled before it began, so that nothing ran."""
        engine, serving = self.engine, self.serving
        self.runs.discard(run)
        now = self.ended_at = engine.loop.time()
        duration = now - run.began
        serving.counts[duration_column(duration)] += 1
        end = run.end or End.DRAIN
        serving.records.closed(run.ends, duration, None, None, end.value, run.outcome)
        if serving.entry.wait:
            serving.gate.leave(NO_SOURCE)
        self._go_on(run, duration)
        engine.held -= 1
        engine.end_if_drained()

    def _go_on(self, run: Run, duration: float) -> None:
        """Poll again, but not for ever for somebody who ends at once."""
        pause = run.pause
        self.quick = 0 if duration >= QUICK else self.quick + 1 if run.follows else 1
        if self.quick >= MOST_QUICK and not pause:
            self.quick, pause = 0, PAUSE
            text = f"it ended at once {MOST_QUICK} times in a row, and pauses for {PAUSE:.0f} s"
            self.engine.report(Record("error", text, self.serving.name))
        if self.stopped:
            self.sock.close()
        elif self.serving.entry.wait or pause:
            self._poll_again_in(pause)
