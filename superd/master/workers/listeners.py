"""Checks the listeners: repairs what a worker did to them, and binds again what is beyond
repair.

Runs in the master, a few times a second. Never accepts a connection or reads a datagram. Raises
nothing: an address that cannot be bound again yet is retried at the next check.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Container, Iterator, Mapping

from superd.config.model import TCPMUX, Service
from superd.errors import reason
from superd.listen.listener import Listener
from superd.listen.listeners import listen_again, reopen
from superd.listen.names import Answers
from superd.master.logs.log import Log
from superd.net.addresses import Address, Transport

CHECKED_AT_A_TIME = 500  # listeners: with more of them, a check would block the master's loop

BROKEN = "one of its listeners was beyond repair"
WITHOUT = "it was started without one of its listeners"


class Listeners:
    """All listeners of this superd. One that is lost stays in `all`, closed, until it is bound
    again; so do those in `pending`, whose addresses could not be bound yet.
    """

    def __init__(self, listeners: list[Listener], log: Log) -> None:
        self.all = listeners
        self.log = log
        self.changes = 0  # sockets that were closed or bound
        self.pending = [one for one in listeners if one.failure is not None]
        self._lost = {one.address for one in listeners if one.is_closed and one.failure is None}
        self._next = 0  # index of the listener that is checked next

    @property
    def is_stale(self) -> bool:
        """Whether another generation, with the same sockets, has found one of them broken."""
        return any(
            one.is_closed and one.failure is None and one.address not in self._lost
            for one in self.all
        )

    def sockets(self, services: Container[str]) -> list[tuple[str, Address, socket.socket]]:
        """Return the sockets for workers that serve `services`, with service and address."""
        return [
            (listener.service, listener.address, listener.socket)
            for listener in self.all
            if listener.service in services and not listener.is_closed
        ]

    def inodes(self, services: Container[str]) -> set[int]:
        """Return the inodes of the sockets of `services`."""
        sockets = (sock for *_, sock in self.sockets(services) if sock.fileno() >= 0)
        return {os.fstat(sock.fileno()).st_ino for sock in sockets}

    def entrances(self, services: Mapping[str, Service]) -> dict[str, socket.socket]:
        """Return, by name, the sockets on which workers that serve `services` pass connections to
        the services behind tcpmux.
        """
        if not any(entry.plugin == TCPMUX for entry in services.values()):
            return {}
        found = ((one.address.path, one.entrance) for one in self.all if not one.is_closed)
        return {name: entrance for name, entrance in found if entrance is not None}

    def ports(self, transport: Transport) -> frozenset[int]:
        """Return the ports of all services, of tcp or udp."""
        addresses = [listener.address for listener in self.all]
        return frozenset(a.port for a in addresses if a.transport is transport)

    def unixgram_names(self) -> frozenset[str | bytes]:
        """Return the names that peers see of all unix sockets for datagrams."""
        paths = [o.address.path for o in self.all if o.address.transport is Transport.UNIXGRAM]
        return frozenset(
            b"\0" + os.fsencode(path[1:]) if path.startswith("@") else path for path in paths
        )

    def check(self) -> Iterator[tuple[str, str]]:
        """Repair some listeners, in turn; yield each service whose workers have to be replaced,
        with the reason.
        """
        yield from self.renew_lost()
        first = self._next if self._next < len(self.all) else 0
        self._next = first + CHECKED_AT_A_TIME
        for listener in self.all[first : self._next]:
            if listener.address in self._lost or listener.failure is not None:
                continue
            try:
                done = listener.repair()
            except OSError as error:
                listener.close()
                self.changes += 1
                self._lost.add(listener.address)
                what = f"is beyond repair ({reason(error)}); it is bound again, with new workers"
                self.log.error(f"{listener.address} {what}", listener.service)
                yield from self._concerned(listener, BROKEN)
            else:
                if done:
                    self.log.error(f"{listener.address} {done}; repaired", listener.service)

    def bind_pending(self, answers: Answers, notices: list[str]) -> list[Listener]:
        """Try to bind the pending addresses; return the listeners that were bound."""
        ports = {one.configured.port for one in self.pending}
        open_ones = [one for one in self.all if one.failure is None]
        near = [one for one in open_ones if one.address.path or one.address.port in ports]
        tried = listen_again(self.pending, near, notices, answers)
        self.all = [*open_ones, *tried]
        self.pending = [one for one in tried if one.failure is not None]
        bound = [one for one in tried if one.failure is None]
        self.changes += bool(bound)
        return bound

    def renew_lost(self) -> Iterator[tuple[str, str]]:
        """Bind lost addresses again, once no worker holds them any more; yield as `check` does."""
        for number, listener in enumerate(self.all if self._lost else ()):
            if listener.address in self._lost and listener.failure is None:
                try:
                    self.all[number] = reopen(listener)
                except OSError:
                    continue
                self.changes += 1
                self._lost.remove(listener.address)
                self.log.warning(f"{listener.address} is bound again", listener.service)
                yield from self._concerned(listener, WITHOUT)

    def _concerned(self, listener: Listener, why: str) -> Iterator[tuple[str, str]]:
        """Yield the services whose workers have a listener; those of tcpmux have the other end of
        some.
        """
        yield listener.service, why
        if listener.address.transport is Transport.TCPMUX:
            services = {one.service for one in self.all if one.entry.plugin == TCPMUX}
            yield from ((service, why) for service in services)

    def release(self) -> None:
        """Leave the sockets, open, to the generation that has taken them over."""
        self.all, self.pending = [], []

    def close(self) -> None:
        """Close all listeners."""
        for listener in self.all:
            listener.close()
        self.all, self.pending = [], []
