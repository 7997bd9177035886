"""Checks that the loop turns, and reports which handler blocked it.

Runs in the worker, on the loop. A thread is no alternative: forked processes would not have it, and
it could not run while C code holds the interpreter's lock. Each beat sets a timer, which expires
only if the next beat is late; faulthandler then writes the stack from within the handler of
SIGALRM, which superd reserves for itself. Never raises.

A loop that was blocked is reported, with its stack, after 250 ms or more in a worker that is busy
or has just accepted a client, after 450 ms or more where connections are open but idle, and after
1.25 s or more where there is no connection. Less than 150 ms are never reported, as measuring
starts at the beat that was missed. Time in which the worker could not run, because another process
had the processor or another thread the interpreter, does not count; nor does the time of a worker
that was stopped while it waited for clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Sequence, Sized
from types import FrameType
from typing import NamedTuple

from superd.observe.records import FloodGate, Record
from superd.observe.stacks import Frame, Stack
from superd.worker.lifeline import Lifeline
from superd.worker.runtime.service import WorkerService

MAX_LATENESS = 0.15  # seconds that a beat may be late without a report
BUSY_PERIOD = 0.1  # seconds between beats
# a little longer than the period of the engine's own timers, each of which beats as well
IDLE_PERIOD = 0.3  # where connections are open
EMPTY_PERIOD = 1.1  # where there is no connection
BUSY_SHARE = 0.01  # of a processor; the beats themselves take a twentieth of that

# ns that the calling thread has run, and has waited for a processor (proc(5), sched-stats)
SCHEDULER_STATISTICS = "/proc/thread-self/schedstat"


class _Usage(NamedTuple):
    """Seconds that the loop's thread has run so far, and that it was ready but could not run."""

    own: float
    delayed: float


class Heartbeat:
    """Beats as long as the loop turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lifeline: Lifeline) -> None:
        self._is_slow = False
        self._loop = loop
        self._lifeline = lifeline
        self._owners: dict[str, list[str]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due, self._last = float("inf"), 0.0  # no heartbeat is due until one is scheduled
        self._used = _Usage(0.0, 0.0)
        try:  # before the worker is confined
            self._statistics = os.open(SCHEDULER_STATISTICS, os.O_RDONLY)
        except OSError:
            self._statistics = -1

    def add(self, service: WorkerService) -> None:
        """Attribute the code of a service's plugin to the service."""
        module = type(service.plugin).__module__.partition(".")[0]
        self._owners.setdefault(module, []).append(service.name)

    def owner_of(self, frames: Sequence[FrameType]) -> tuple[str, str]:
        """Return the service whose plugin has the innermost of these frames, and where that is."""
        shown = [Frame(f.f_code.co_filename, f.f_lineno, f.f_code.co_name) for f in frames]
        return Stack(tuple(shown), is_known=True).place(self._owners)

    def start(self, flood_gate: FloodGate, connected: Sized) -> None:
        """Beat from now on; `connected` has the open connections."""
        self._flood_gate = flood_gate
        self._connected = connected
        faulthandler.register(signal.SIGALRM, self._lifeline.writer, all_threads=False)
        self._last = time.monotonic()
        self._used = self._usage()
        self._schedule(self._last, BUSY_PERIOD)

    def stop(self) -> None:
        """Stop watching; the master continues until the worker has ended."""
        if self._timer is not None:
            self._timer.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)

    @property
    def wants_beat(self) -> bool:
        """Whether a client that connects should cause `speed_up`: the next beat may be a second
        away, too late to notice that the client has to wait, or it is overdue because the loop is
        busy with other clients.
        """
        return self._is_slow or time.monotonic() > self._due

    def speed_up(self) -> None:
        """Beat at the period of a busy worker, since a client has connected."""
        self.beat(has_client=True)

    def beat(self, *, has_client: bool = False) -> None:
        """Note that the loop turns. A caller that wakes up anyway saves a timer by it."""
        if self._timer is not None:
            self._timer.cancel()
        now = time.monotonic()
        used = self._usage()
        late = now - self._due
        if late > MAX_LATENESS:
            self._report_blocked(late, used)
        has_worked = used.own - self._used.own > BUSY_SHARE * (now - self._last)
        if has_client or has_worked or late > MAX_LATENESS:
            period = BUSY_PERIOD
        else:
            period = IDLE_PERIOD if self._connected else EMPTY_PERIOD
        self._last, self._used = now, used
        self._schedule(now, period)

    def _schedule(self, now: float, period: float) -> None:
        self._is_slow = period > BUSY_PERIOD
        self._due = now + period
        self._lifeline.expect(self._due)
        signal.setitimer(signal.ITIMER_REAL, period + MAX_LATENESS)
        self._timer = self._loop.call_later(period, self.beat)

    def _report_blocked(self, late: float, used: _Usage) -> None:
        """Report a late beat, unless the worker could not run or was at rest."""
        stack = self._lifeline.stack()
        blocked = late - (used.delayed - self._used.delayed)
        if blocked < MAX_LATENESS or stack.is_at_rest:
            return
        service, place = stack.place(self._owners)
        text = f"the event loop was blocked for {blocked:.2f} s or more, {place}"
        detail = stack.lines(with_source=True)
        record = Record("warning", text, service=service, detail=detail)
        self._flood_gate.report(("blocked", *stack.frames[-1:]), record)

    def _usage(self) -> _Usage:
        own = time.thread_time()
        waited = 0.0
        with contextlib.suppress(OSError, ValueError, IndexError):  # a plugin may have closed it
            waited = int(os.pread(self._statistics, 100, 0).split()[1]) / 1e9
        return _Usage(own, waited + time.process_time() - own)
