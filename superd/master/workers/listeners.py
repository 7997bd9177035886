"""Looks after the listeners: undoes what a worker did to them, makes anew what is broken for good.

Runs in the master, a few times a second. Never accepts a connection or reads a datagram. Never
raises: an address that cannot be had again for now is tried again at the next look.
"""

from __future__ import annotations

import socket
from collections.abc import Container, Iterator, Mapping

from superd.config.model import TCPMUX, Service
from superd.errors import reason
from superd.listen.listeners import Listener, renew
from superd.master.logs.log import Log
from superd.net.addresses import Address, Transport

MOST_AT_ONCE = 500  # listeners that are looked at: others are to have their turn, too

BROKEN = "a listener of its was broken for good"
WITHOUT = "it was started without one of its listeners"


class Watch:
    """All listeners of this superd. Those that are lost are closed, and wait to be made anew."""

    def __init__(self, listeners: list[Listener], log: Log) -> None:
        self.listeners = listeners
        self.log = log
        self.changes = 0  # how many sockets were closed or made anew
        self._lost = {one.address for one in listeners if one.is_closed}
        self._next = 0  # who is looked at next

    @property
    def is_overtaken(self) -> bool:
        """Whether another watch, of the same sockets, has found one broken."""
        return any(one.is_closed and one.address not in self._lost for one in self.listeners)

    def sockets(self, services: Container[str]) -> list[tuple[str, Address, socket.socket]]:
        """Return what workers that serve `services` listen on."""
        return [
            (listener.service, listener.address, listener.socket)
            for listener in self.listeners
            if listener.service in services and listener.address not in self._lost
        ]

    def entrances(self, services: Mapping[str, Service]) -> dict[str, socket.socket]:
        """Return, by name, where workers that serve `services` pass connections on to others."""
        if not any(entry.plugin == TCPMUX for entry in services.values()):
            return {}
        found = (
            (one.address.path, one.entrance)
            for one in self.listeners
            if one.address not in self._lost
        )
        return {name: entrance for name, entrance in found if entrance is not None}

    def ports(self, transport: Transport) -> frozenset[int]:
        """Return the ports of all services, of tcp or udp."""
        addresses = [listener.address for listener in self.listeners]
        return frozenset(a.port for a in addresses if a.transport is transport)

    def unixgram_names(self) -> frozenset[str | bytes]:
        """Return what all unix sockets for datagrams are called by those who hear from them."""
        kind = Transport.UNIXGRAM
        return frozenset(
            one.socket.getsockname() for one in self.listeners if one.address.transport is kind
        )

    def look(self) -> Iterator[tuple[str, str]]:
        """Repair some, in turn; yield each service whose workers have to be replaced, and why."""
        yield from self.renew_lost()
        first = self._next if self._next < len(self.listeners) else 0
        self._next = first + MOST_AT_ONCE
        for listener in self.listeners[first : self._next]:
            if listener.address in self._lost:
                continue
            try:
                done = listener.repair()
            except OSError as error:
                listener.close()
                self.changes += 1
                self._lost.add(listener.address)
                what = f"was broken for good ({reason(error)}); it is made anew, with new workers"
                self.log.error(f"{listener.address} {what}", listener.service)
                yield from self._concerned(listener, BROKEN)
            else:
                if done:
                    self.log.error(f"{listener.address} {done}; repaired", listener.service)

    def renew_lost(self) -> Iterator[tuple[str, str]]:
        """Listen again on lost addresses, as soon as no worker holds them; yield as `look` does."""
        for number, listener in enumerate(self.listeners if self._lost else ()):
            if listener.address in self._lost:
                try:
                    self.listeners[number] = renew(listener)
                except OSError:
                    continue
                self.changes += 1
                self._lost.remove(listener.address)
                self.log.warning(f"{listener.address} is listened on again", listener.service)
                yield from self._concerned(listener, WITHOUT)

    def _concerned(self, listener: Listener, why: str) -> Iterator[tuple[str, str]]:
        """Yield the services whose workers have a listener: tcpmux has the other end of some."""
        yield listener.service, why
        if listener.address.transport is Transport.TCPMUX:
            services = {one.service for one in self.listeners if one.entry.plugin == TCPMUX}
            yield from ((service, why) for service in services)

    def forget(self) -> None:
        """Leave the listeners to another watch."""
        self.listeners = []

    def close(self) -> None:
        """Let go of every address."""
        for listener in self.listeners:
            listener.close()
        self.listeners = []
