"""The shared state of a worker: what its engine, listeners and sessions all use.

Runs in the worker, on the loop. Never raises.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Protocol

from superd.admission.reflection import ReflectionGuard
from superd.observe.connections import ConnectionLog
from superd.observe.records import FloodGate, Record, Report, Threshold
from superd.plugin.relay import Poller
from superd.worker.runtime.accounting import AccountedConnection, Accounting
from superd.worker.runtime.heartbeat import Heartbeat
from superd.worker.runtime.linger import Lingering
from superd.worker.runtime.loop import WorkerLoop
from superd.worker.runtime.names import Names
from superd.worker.runtime.polling import poller_of
from superd.worker.runtime.service import WorkerService
from superd.worker.runtime.tarpit import Tarpit


class ServedSocket(Protocol):
    """A listening or datagram socket that the worker serves."""

    def start(self) -> None:
        """Poll the socket."""

    def stop(self) -> None:
        """Serve what is pending, then close the socket in this worker."""


class ProgramConnection(Protocol):
    """A connection whose socket a program has."""

    program: int  # its process ID
    task: asyncio.Task[None] | None  # that waits for it; None once it has ended

    def check_holder(self) -> None:
        """Close the socket once no other process has it."""


class Context:
    """One for a worker. `serial` is unique among the workers of one master. The engine sets the
    three callbacks.
    """

    check_listeners: Callable[[], None]  # stops the worker if a plugin has closed a listener
    check_descriptors: Callable[[], None]  # frees descriptors after EMFILE
    on_drained: Callable[[], None]

    def __init__(
        self,
        loop: WorkerLoop,
        serial: int,
        report: Report,
        threshold: Threshold,
        send_events: Callable[[bytes], bool],
        guard: ReflectionGuard,
        drain_timeout: float,
        retire_timeout: float,
        heartbeat: Heartbeat,
        configuration: str,
        resolver: str = "",
        tend_output: Callable[[], None] = lambda: None,
    ) -> None:
        def lost(number: int) -> None:
            self.report(Record("warning", f"{number} records of connections were lost"))

        self.loop = loop
        self.serial = serial
        self.report = report
        self.threshold = threshold
        self.guard = guard
        self.drain_timeout = drain_timeout
        self.retire_timeout = retire_timeout
        self.heartbeat = heartbeat
        self.configuration = configuration
        self.connection_log = ConnectionLog(os.getpid(), send_events, loop.call_later, lost)
        self.flood_gate = FloodGate(report)
        self.tend_output = tend_output
        self.connections: dict[int, AccountedConnection] = {}  # the open ones, by number
        self.programs: set[ProgramConnection] = set()
        self.accounting = Accounting(serial, loop.time, self.connections)
        self.names = Names(loop, resolver)
        self.lingering = Lingering(loop, self.end_if_drained)
        self.tarpit = Tarpit(loop)
        self.services: list[WorkerService] = []
        self.sockets: list[ServedSocket] = []
        self.flows = Counter[str]()  # how many flows each service has
        self.held = 0  # clients and listener handoffs outside the table that delay the end
        self.is_draining = False
        self.is_copy = False  # this process was forked by a plugin, and is not the worker
        self.is_forking = False  # the worker itself forks a process, which is not a copy

    @cached_property
    def poller(self) -> Poller:
        """What polls the sockets of relays."""
        return poller_of(self.loop)

    def hold(self, seconds: float, retry: Callable[[], None]) -> None:
        """Call `retry` for an accepted client later; the worker does not end before that."""

        def later() -> None:
            self.held -= 1
            retry()
            self.end_if_drained()

        self.held += 1
        self.loop.call_later(seconds, later)

    def end_if_drained(self) -> None:
        """Call `on_drained` if the worker drains and has no client left."""
        if self.is_draining and not (self.connections or self.lingering or self.names or self.held):
            self.on_drained()
