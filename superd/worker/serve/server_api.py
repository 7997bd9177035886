"""What a worker does for one of its services: see the methods of the same names in Service.

Runs in the worker, once it serves. Never blocks. Raises RuntimeError for a service that passes a
connection on and is not tcpmux, or observes superd and is not metrics; TimeoutError where the
master does not answer.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from superd.admission.limits import netblock_of
from superd.config.model import METRICS
from superd.config.model import Service as Entry
from superd.net.addresses import Address, Transport
from superd.observe.connections import ServiceRecords, ends_of, safe
from superd.observe.records import Level, Record
from superd.plugin.connection import Client, Connection
from superd.plugin.relay import Poller
from superd.plugin.service import Request
from superd.worker.channel import Channel
from superd.worker.runtime.context import Context
from superd.worker.runtime.queries import MasterQueries
from superd.worker.serve.session import Session
from superd.worker.serve.takeover import TakeoverSession


class ServerApi:
    """The server as one service sees it. `entrances` are the sockets through which tcpmux passes
    connections on, by service.
    """

    def __init__(
        self,
        context: Context,
        channel: Channel,
        name: str,
        entry: Entry,
        entrances: Mapping[str, socket.socket],
        ports: Mapping[Transport, frozenset[int]],
        records: ServiceRecords,
        queries: MasterQueries,
    ) -> None:
        self._context = context
        self._channel = channel
        self.name = name
        self._entry = entry
        self._entrances = entrances
        self._ports = ports
        self._records = records
        self._queries = queries

    def log(self, level: Level, text: str) -> None:
        self._context.report(Record(level, text, service=self.name))

    def record(self, of: Client | Request, text: str, facts: Mapping[str, str]) -> None:
        if isinstance(of, Session):
            ends = of.ends
        else:
            accounting = self._context.accounting
            number = accounting.id_of(accounting.next_number())
            ends = ends_of(number, safe(of.peer.endpoint), safe(str(of.local)))
        self._records.noted(ends, text, facts)

    def name_of(self, peer: Address, found: Callable[[str], None]) -> None:
        if peer.transport.is_unix:
            found("")
        else:
            self._context.names.look_up_name(peer.host, found)

    def ban(self, peer: Address, seconds: float, reason: str) -> None:
        if not peer.transport.is_unix:
            network = netblock_of(peer.host, self._entry.source_netblock)
            self._channel.ban(self.name, str(network), float(seconds), str(reason))

    def look_up(self, host: str, found: Callable[[tuple[str, ...]], None]) -> None:
        self._context.names.look_up_addresses(host, found)

    def distrust(self, host: str) -> None:
        self._context.names.distrust(host)

    @property
    def poller(self) -> Poller:
        return self._context.poller

    @property
    def drains(self) -> bool:
        return self._context.is_draining

    async def observe(self, what: str) -> bytes:
        if self._entry.plugin != METRICS:
            raise RuntimeError(f"{self.name} cannot observe superd: its plugin is not {METRICS}")
        return await self._queries.observe(what)

    def listens_on(self, transport: Transport, port: int) -> bool:
        return port in self._ports.get(transport, ())

    def reachable(self) -> tuple[str, ...]:
        return tuple(sorted(self._entrances))

    def pass_on(self, conn: Connection, name: str) -> bool:
        if name not in self._entrances:
            raise RuntimeError(
                f"{self.name} cannot pass a connection on: no service listens on tcpmux://{name}"
            )
        assert isinstance(conn, TakeoverSession)
        return conn.pass_on(self._entrances[name])
