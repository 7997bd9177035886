"""Sees that the loop turns, and tells which handler held it up.

Runs in the worker, on the loop; a thread could not be had where processes are forked, and would be
silent while C code holds the interpreter's lock. A timer that is set anew at each beat, and so
never rings while all is well, has faulthandler write the stack from within the signal's handler:
SIGALRM is superd's own. Never raises.

What is told, with its stack: each standstill of 250 ms or more in a worker that is busy or has just
been come to, of 450 ms or more where connections are open but quiet, and of 1.25 s or more where
there is nobody; and none below 150 ms, as what is measured starts at the beat that was missed.
Time in which the worker could not run, for others had the processor or the interpreter, does not
count, and neither does that of a worker that was stopped while it waited for clients.
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

SLACK = 0.15  # seconds that a beat may be late
BUSY = 0.1  # seconds between beats
QUIET = 0.3  # a little more than what the context wakes up for anyway: that is a beat as well
LONELY = 1.1
BUSY_SHARE = 0.01  # of a processor; the beats themselves take a twentieth of that

# of the calling thread, in ns: it ran, and waited for a processor (proc(5), sched-stats)
SCHEDULED = "/proc/thread-self/schedstat"


class _Usage(NamedTuple):
    """Seconds until now that the loop's thread has run, and that others kept it from running."""

    own: float
    kept_from: float


class Heartbeat:
    """Beats for as long as the loop turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lifeline: Lifeline) -> None:
        self._is_slow = False
        self._loop = loop
        self._lifeline = lifeline
        self._owners: dict[str, list[str]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due, self._last = float("inf"), 0.0  # no beat is late before the first
        self._used = _Usage(0.0, 0.0)
        try:  # before the worker is confined
            self._scheduled = os.open(SCHEDULED, os.O_RDONLY)
        except OSError:
            self._scheduled = -1

    def add(self, service: WorkerService) -> None:
        """Know whose a plugin's code is."""
        module = type(service.plugin).__module__.partition(".")[0]
        self._owners.setdefault(module, []).append(service.name)

    def whose(self, frames: Sequence[FrameType]) -> tuple[str, str]:
        """Return the service whose plugin has the innermost of these frames, and the place."""
        shown = [Frame(f.f_code.co_filename, f.f_lineno, f.f_code.co_name) for f in frames]
        return Stack(tuple(shown), is_known=True).place(self._owners)

    def start(self, flood_gate: FloodGate, connected: Sized) -> None:
        """Beat from now on; `connected` is whoever is served."""
        self._flood_gate = flood_gate
        self._connected = connected
        faulthandler.register(signal.SIGALRM, self._lifeline.writer, all_threads=False)
        self._last = time.monotonic()
        self._used = self._usage()
        self._set(self._last, BUSY)

    def stop(self) -> None:
        """Watch no more; the master does until the worker has ended."""
        if self._timer is not None:
            self._timer.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)

    @property
    def wants_beat(self) -> bool:
        """Whether who comes should call `quicken`: a beat that might be as much as a second away
        would not see that they are held up, and one that is late waits for others who come.
        """
        return self._is_slow or time.monotonic() > self._due

    def quicken(self) -> None:
        """Watch more closely, for somebody has come."""
        self.beat(is_come_to=True)

    def beat(self, *, is_come_to: bool = False) -> None:
        """Note that the loop turns; whoever has to wake up anyway spares it a beat of its own."""
        if self._timer is not None:
            self._timer.cancel()
        now = time.monotonic()
        used = self._usage()
        late = now - self._due
        if late > SLACK:
            self._look_back(late, used)
        has_worked = used.own - self._used.own > BUSY_SHARE * (now - self._last)
        if is_come_to or has_worked or late > SLACK:
            period = BUSY
        else:
            period = QUIET if self._connected else LONELY
        self._last, self._used = now, used
        self._set(now, period)

    def _set(self, now: float, period: float) -> None:
        self._is_slow = period > BUSY
        self._due = now + period
        self._lifeline.expect(self._due)
        signal.setitimer(signal.ITIMER_REAL, period + SLACK)
        self._timer = self._loop.call_later(period, self.beat)

    def _look_back(self, late: float, used: _Usage) -> None:
        """Tell of a beat that came late, if it was somebody's fault."""
        stack = self._lifeline.stack()
        still = late - (used.kept_from - self._used.kept_from)
        if still < SLACK or stack.is_at_rest:
            return
        service, place = stack.place(self._owners)
        text = f"the worker stood still for {still:.2f} s or more, {place}"
        detail = stack.lines(with_source=True)
        record = Record("warning", text, service=service, detail=detail)
        self._flood_gate.report(("standstill", *stack.frames[-1:]), record)

    def _usage(self) -> _Usage:
        own = time.thread_time()
        waited = 0.0
        with contextlib.suppress(OSError, ValueError, IndexError):  # it may be closed by a plugin
            waited = int(os.pread(self._scheduled, 100, 0).split()[1]) / 1e9
        return _Usage(own, waited + time.process_time() - own)
