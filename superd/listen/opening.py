"""Binds a set of addresses as far as possible, and collects why others cannot be bound.

Runs in the master and the command line. Never accepts a connection or reads a datagram; decides
nothing about what a failure means. `open_listener` raises OSError.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from superd.config.model import Service
from superd.listen.binding import bind, file_at, file_identity
from superd.listen.failures import (
    TOO_MANY_FILES_ERRNOS,
    Failure,
    failure_of,
    in_use,
    not_found,
    shown_addresses,
)
from superd.listen.holders import described_holders
from superd.listen.listener import Listener
from superd.listen.names import NOT_ASKED, Answers
from superd.net.addresses import ANY_IPV4, Address, Transport

# Fields in which addresses may differ that compare equal.
DETAILS_OF_EQUAL_ADDRESSES = ("mode", "uid", "gid", "greets")
MAX_DESCRIBED_HOLDERS = 8  # of addresses in use: each takes a look at every process

NO_FAILURES: Mapping[tuple[str, Address], Failure] = MappingProxyType({})

Wanted = tuple[str, Service, Address]  # a service, and one of the addresses to bind for it


class Opening:
    """Binds the wanted addresses, as far as possible. `listeners` and `failures` are by the index
    of the wanted address. `fatal` is set if every later address would fail as well. `before` has
    failures of earlier attempts: the processes that have a port are not searched for each time.
    """

    def __init__(
        self,
        wanted: Sequence[Wanted],
        existing: Sequence[Listener],
        answers: Answers,
        notices: list[str],
        before: Mapping[tuple[str, Address], Failure] = NO_FAILURES,
    ) -> None:
        self.listeners: dict[int, Listener] = {}
        self.failures: dict[int, Failure] = {}
        self.fatal: list[Failure] = []
        self._made: list[int] = []
        self._taken: dict[str, set[int]] = {}  # by service: ports of ranges that others have
        self._wanted = wanted
        self._existing = existing
        self._answers = answers
        self._notices = notices
        self._before = before
        self._described = 0
        open_ones = [one for one in existing if one.failure is None]
        self._shared = _shared([one for *_, one in wanted] + [one.address for one in open_ones])
        for listener in open_ones:
            if listener.address in self._shared and not listener.is_closed:
                listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                listener.shares_port = True
        self._used_ports = {_port_key(listener.address) for listener in open_ones}

    def bind(self, kept: Mapping[int, Listener]) -> None:
        """Bind; `kept` are existing listeners whose sockets are used again."""
        covered = {  # IPv4 addresses that a kept dual-stack socket serves
            (self._wanted[number][0], replace(self._wanted[number][2], host=ANY_IPV4))
            for number, listener in kept.items()
            if listener.takes_ipv4
        }
        for number, (name, service, address) in enumerate(self._wanted):
            if number in kept:
                self.listeners[number] = _kept_for(kept[number], name, service, address)
            elif address.is_name:
                answer = self._answers.get(address.host, NOT_ASKED)
                self.failures[number] = not_found(name, address, answer)
        done = self.listeners.keys() | self.failures.keys()
        left = [number for number in range(len(self._wanted)) if number not in done]
        # what a service names explicitly belongs to it, not to a name or a range of another
        left.sort(key=lambda number: _precedence(self._wanted[number][2]))
        for number in left:
            name, service, address = self._wanted[number]
            if address in self._shared and _port_key(address) not in self._used_ports:
                try:
                    bind(service, address, share=False).close()
                except OSError as error:
                    self._failed(number, error)
        for number in left:
            name, service, address = self._wanted[number]
            is_covered = (name, address) in covered or self._has_already(name, address)
            if not self.fatal and not self._has_failed(number) and not is_covered:
                try:
                    share = address in self._shared
                    self.listeners[number] = open_listener(name, service, address, share=share)
                    self._made.append(number)
                except OSError as error:
                    self._failed(number, error)
        self._leave_out()

    def start(self) -> None:
        """Listen on what was bound."""
        for number in list(self._made):
            try:
                self.listeners[number].start()
            except OSError as error:
                self._made.remove(number)
                self.listeners.pop(number).close()
                self._failed(number, error)
        self._leave_out()

    def result(self) -> list[Listener]:
        """Return the listeners and the pending addresses, in the order of the wanted ones."""
        for number, failure in self.failures.items():
            name, service, address = self._wanted[number]
            lost = socket.socket()
            lost.close()
            share = address in self._shared
            self.listeners[number] = Listener(
                name, service, address, address, lost, shares_port=share, failure=failure
            )
        return [self.listeners[number] for number in sorted(self.listeners)]

    def close(self) -> None:
        """Close the sockets that were bound."""
        for number in self._made:
            self.listeners[number].close()

    @property
    def is_reachable(self) -> bool:
        """Whether a client could connect to anything that was bound."""
        return any(not one.is_closed and not one.entrance for one in self.listeners.values())

    def _has_already(self, name: str, address: Address) -> bool:
        """Return whether a service has an address, which a name stands for, in another way."""
        if not address.listed.is_name:
            return False
        one = _find([*self.listeners.values(), *self._existing], address)
        return one is not None and one.service == name

    def _has_failed(self, number: int) -> bool:
        name, *_ = self._wanted[number]
        return number in self.failures or number in self._taken.get(name, ())

    def _failed(self, number: int, error: OSError) -> None:
        name, service, address = self._wanted[number]
        if error.errno == errno.EADDRINUSE and address.is_from_range:
            self._taken.setdefault(name, set()).add(number)
            return
        before = self._before.get((name, address))
        if error.errno == errno.EADDRINUSE and before and before.is_in_use:
            self.failures[number] = before
            return
        if error.errno == errno.EADDRINUSE and (ours := self._own_holder(name, address)):
            self.failures[number] = in_use(name, address, ours)
            return
        holders = "another process"
        if error.errno == errno.EADDRINUSE and self._described < MAX_DESCRIBED_HOLDERS:
            self._described += 1
            holders = described_holders(address)
        self.failures[number] = failure_of(error, name, service, address, holders)
        if error.errno in TOO_MANY_FILES_ERRNOS:
            self.fatal = [self.failures[number]]

    def _own_holder(self, name: str, address: Address) -> str:
        """Return which service of superd itself listens there; "" if none does."""
        if (one := _find(self.listeners.values(), address)) is not None:
            return f"superd itself listens there for service.{one.service}"
        if (one := _find(self._existing, address)) is None:
            return ""
        commands = f"`superd disable {one.service}`"
        if one.service == name:
            commands += f", `superd reload` and `superd enable {name}`"
        else:
            commands += " and `superd reload`"
        return (
            f"superd itself listens there for service.{one.service} and cannot change that socket"
            f" while it is open; restart superd, or run {commands}"
        )

    def _leave_out(self) -> None:
        """Leave out the ports of ranges that others have if the service has another address, and
        hosts of a name that this machine does not have if it has another of them.
        """
        for name, numbers in self._taken.items():
            addresses = [self._wanted[number][2] for number in sorted(numbers)]
            if any(one.service == name for one in self.listeners.values()):
                ports = shown_addresses(addresses)
                text = f"left out, as other processes listen there: {ports}"
                self._notices.append(f"service.{name}: {text}")
            else:
                for number, address in zip(sorted(numbers), addresses, strict=True):
                    cause = "other processes listen there"
                    self.failures[number] = in_use(name, address, cause)
        self._taken.clear()
        bound = {
            (one.service, one.configured.listed)
            for one in self.listeners.values()
            if not one.is_closed
        }
        for number, failure in list(self.failures.items()):
            address = failure.address
            is_one_of_several = address.listed_host and (failure.service, address.listed) in bound
            if failure.is_not_here and is_one_of_several:
                del self.failures[number]
                self._notices.append(
                    f"service.{failure.service}: listens on {address.listed} without {address}:"
                    f" {failure.cause}"
                )


def _precedence(address: Address) -> tuple[bool, bool]:
    return (address.is_from_range, address.listed.is_name)


def _find(listeners: Iterable[Listener], address: Address) -> Listener | None:
    file = file_at(address.path)
    for one in listeners:
        is_file = file is not None and file in (one.file, file_at(one.address.path))
        if not one.is_closed and (is_file or one.address == address):
            return one
    return None


def _kept_for(listener: Listener, name: str, service: Service, address: Address) -> Listener:
    """Return a listener for another entry with the socket of an existing one."""
    how = {key: getattr(address, key) for key in DETAILS_OF_EQUAL_ADDRESSES}
    if listener.file is not None:
        how["path"] = address.path
    bound = replace(listener.address, **how)
    return replace(listener, service=name, entry=service, configured=address, address=bound)


def _port_key(address: Address) -> object:
    return (address.transport, address.family, address.port)


def _shared(addresses: Iterable[Address]) -> set[Address]:
    """Return the addresses that share a port with the wildcard of their transport and family."""
    ends: dict[object, list[Address]] = {}
    for address in addresses:
        if address.port:
            ends.setdefault(_port_key(address), []).append(address)
    return {
        address
        for group in ends.values()
        if len(group) > 1 and any(member.is_wildcard for member in group)
        for address in group
    }


def open_listener(name: str, service: Service, address: Address, *, share: bool) -> Listener:
    if address.transport is Transport.TCPMUX:
        receiver, entrance = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Listener(name, service, address, address, receiver, entrance=entrance)
    sock = bind(service, address, share=share)
    if address.transport.is_unix:
        file = None if address.path.startswith("@") else file_identity(address.path)
        listener = Listener(name, service, address, address, sock, file=file)
        # at once, as another process may remove a socket file on which no process listens
        listener.start()
        return listener
    bound = replace(address, port=sock.getsockname()[1])
    return Listener(name, service, address, bound, sock, shares_port=share)
