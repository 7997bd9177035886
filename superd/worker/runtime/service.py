"""One service entry as a worker serves it: the plugin's object, its settings and its counters.

Runs in the worker. Never raises.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Protocol

from superd.admission.gate import Gate, Ticket
from superd.config.model import Service as Entry
from superd.observe.connections import ServiceRecords
from superd.plugin.connection import BlockingConnection, Connection
from superd.plugin.methods import DATAGRAM_METHODS, STREAM_METHODS, model_of
from superd.plugin.relay import DatagramRelay, Relay, Relayed, RelayedDatagrams
from superd.plugin.service import (
    Request,
    Service,
    Waiting,
)
from superd.worker.runtime.output import scope_of

HandlerCoroutine = Coroutine[Any, Any, None]


class PausableListener(Protocol):
    """A listener that can leave its clients in the kernel's backlog: the acceptor."""

    def start(self) -> None:
        """Poll the listener again, unless it is paused."""

    def pause_for(self, seconds: float) -> None:
        """Leave pending connections in the backlog for a while, even if there is a slot."""


@dataclass(frozen=True, eq=False)
class WorkerService:
    """What every connection and datagram of a service shares. `counts` is indexed by `Count`.

    The plugin's methods are looked up once; those that the plugin does not have, or that the model
    of the entry does not use, are None. `acceptors` has all of the service's acceptors, and
    `waiting` those that do not poll because a limit is reached.
    """

    name: str
    entry: Entry
    plugin: Service
    counts: memoryview
    gate: Gate
    records: ServiceRecords
    relay: Callable[[socket.SocketType, Relayed], Relay] | None
    protocol: Callable[[Connection], asyncio.Protocol] | None
    stream: Callable[[Connection], HandlerCoroutine] | None
    blocking: Callable[[BlockingConnection], object] | None
    takeover: Callable[[socket.socket, Connection], HandlerCoroutine] | None
    respond: Callable[[Request], bytes] | None
    relay_datagrams: Callable[[RelayedDatagrams], DatagramRelay] | None
    datagram: Callable[[Request], bytes | None] | None
    listener: Callable[[socket.socket, Waiting], Coroutine[Any, Any, str]] | None
    scope: Context = field(default_factory=Context)  # what runs in it runs for the service
    waiting: set[PausableListener] = field(default_factory=set)
    acceptors: list[PausableListener] = field(default_factory=list)

    def resume(self) -> None:
        """Poll the listeners again that waited for a slot: one may be free."""
        for acceptor in tuple(self.waiting):
            acceptor.start()

    def pause(self, seconds: float) -> None:
        """Leave pending connections in the backlog for a while; 0 is not at all."""
        if seconds:
            for acceptor in self.acceptors:
                acceptor.pause_for(seconds)

    def release(self, ticket: Ticket) -> None:
        """Release the slots of a client in the limits, for the next one."""
        self.gate.leave(ticket)
        if self.waiting:
            self.resume()

    @classmethod
    def of(
        cls, name: str, entry: Entry, plugin: Service, gate: Gate, records: ServiceRecords
    ) -> WorkerService:
        names = (*STREAM_METHODS, *DATAGRAM_METHODS)
        methods: dict[str, Any] = {method: getattr(plugin, method, None) for method in names}
        methods["blocking"] = None
        if model_of(entry, type(plugin)) != "loop":
            blocking = methods["stream"]
            methods |= dict.fromkeys(("relay", "protocol", "stream")) | {"blocking": blocking}
        elif not inspect.iscoroutinefunction(methods["stream"]):
            methods["stream"] = None
        scope = scope_of(name)
        return cls(name, entry, plugin, gate.counts, gate, records, **methods, scope=scope)
