"""The targets of a service: which is next, and which is left out after failures.

Each worker keeps its own state of them. Opens no socket.
"""

from __future__ import annotations

import hashlib
import math
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from superd.plugin import Address, Client, Destination, Level, Transport

NONBLOCKING = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


class TargetAddress:
    """One address of a target, with the arguments of socket(2) and connect(2), computed once.
    `may_loop` means that it may lead back to superd itself.
    """

    __slots__ = (
        "address", "family", "is_tcp", "is_unix", "kind", "may_loop", "name", "port", "sockaddr",
    )  # fmt: skip

    def __init__(self, address: Address, *, may_loop: bool) -> None:
        self.address = address
        self.may_loop = may_loop
        self.name = str(address)
        self.port = address.port
        self.family = int(address.family)
        self.kind = address.transport.socket_type | NONBLOCKING
        self.sockaddr = address.sockaddr
        self.is_tcp = address.transport is Transport.TCP
        self.is_unix = address.transport.is_unix


class Target:
    """One server to forward to. `address` is None if its name has to be looked up first;
    `failures_in_a_row` counts failures since it served last.

    It is left out for `retry_after` seconds once it has failed `fail_after` times in a row, and
    while probes find it down.
    """

    def __init__(
        self,
        destination: Destination,
        weight: int,
        *,
        datagrams: bool,
        fail_after: int,
        retry_after: float,
        listens_on: Callable[[Transport, int], bool],
        log: Callable[[Level, str], None],
        distrust: Callable[[str], None],
    ) -> None:
        self.destination = destination
        self.datagrams = datagrams
        self._listens_on = listens_on
        self.host = destination.host
        self.address = None if destination.is_name else self.address_at(destination.host)
        self.name = str(destination.address(destination.host, datagrams=datagrams))
        self.weight = weight
        self.active = self.served = self.failures = 0
        self.last_error = ""
        self.is_down = False  # by the last probes
        self.failures_in_a_row = 0
        self._left_out_until = 0.0
        self._fail_after = fail_after
        self._retry_after = retry_after
        self._log = log
        self._distrust = distrust

    def address_at(self, host: str) -> TargetAddress:
        """Return its address on one of the hosts that its name resolves to."""
        address = self.destination.address(host, datagrams=self.datagrams)
        is_own = self._listens_on(address.transport, address.port)
        return TargetAddress(address, may_loop=is_own or address.transport.is_unix)

    def is_available(self, now: float) -> bool:
        """Return whether it gets clients at a time of the monotonic clock."""
        return not self.is_down and now >= self._left_out_until

    def client_added(self) -> None:
        """Count a client that is being connected."""
        self.active += 1

    def client_removed(self) -> None:
        """Stop counting a client as active."""
        self.active -= 1

    def accepted(self) -> None:
        """Count a connection that it has accepted, and may still reset."""
        self.served += 1

    def succeeded(self) -> None:
        """Note that it serves."""
        if self.failures_in_a_row:
            if self._left_out_until:
                self._log("info", f"target {self.name} serves again")
            self.failures_in_a_row, self._left_out_until = 0, 0.0

    def failed(self, why: str) -> None:
        """Note that it failed, and leave it out after too many failures in a row."""
        self._distrust_name()
        self.failures += 1
        self.failures_in_a_row += 1
        self.last_error = why
        if self._fail_after and self.failures_in_a_row >= self._fail_after:
            if not self._left_out_until:
                text = f"target {self.name} is left out for {self._retry_after:g} s: {why}"
                self._log("warning", text)
            self._left_out_until = time.monotonic() + self._retry_after

    def _distrust_name(self) -> None:
        """Have its name looked up again: another host may serve it by now."""
        if self.address is None:
            self._distrust(self.host)

    def probed(self, problem: str) -> None:
        """Note the result of probes: a problem, or "" if it is up."""
        if problem:
            self._distrust_name()
        if self.is_down != bool(problem):
            self.is_down = bool(problem)
            result = f"is down: {problem}" if problem else "is up"
            self._log("warning" if problem else "info", f"target {self.name} {result}")
        if problem:
            self.last_error = problem

    def status_row(self, now: float) -> dict[str, str | int | float]:
        """Return its row in `superd status`."""
        state = "down" if self.is_down else "up" if self.is_available(now) else "left out"
        return {
            "target": self.name, "state": state, "weight": self.weight, "active": self.active,
            "served": self.served, "failures": self.failures, "last-error": self.last_error,
        }  # fmt: skip


Order = Callable[[Sequence[Target], Client], Sequence[Target]]


class Targets:
    """All targets for connections, or all for datagrams, in the order of a policy."""

    def __init__(self, targets: Sequence[Target], order: Order) -> None:
        self.all = tuple(targets)
        self._order = order

    def order(self, client: Client) -> Sequence[Target]:
        """Return the targets to try for a client, in this order. Those that are left out are last:
        they are better than none.
        """
        if len(self.all) == 1:
            return self.all
        now = time.monotonic()
        available = [target for target in self.all if target.is_available(now)]
        left_out = [target for target in self.all if target not in available]
        return (*self._order(available, client), *left_out)


class TargetsByPort:
    """Targets for each port of a range that a service listens on."""

    def __init__(self, by_port: Mapping[int, Targets]) -> None:
        self._by_port = by_port
        every = (target for targets in by_port.values() for target in targets.all)
        self.all = tuple(dict.fromkeys(every))

    def order(self, client: Client) -> Sequence[Target]:
        """Do the same as `Targets.order`, by the port that the client has used."""
        return self._by_port[client.local.port].order(client)


class RoundRobin:
    """Smooth weighted round robin: the target that is furthest behind its share is next."""

    def __init__(self) -> None:
        self._credit: dict[Target, int] = {}

    def __call__(self, targets: Sequence[Target], client: Client) -> Sequence[Target]:
        credit = self._credit
        for target in targets:
            credit[target] = credit.get(target, 0) + target.weight
        order = sorted(targets, key=lambda target: -credit[target])
        if order:
            credit[order[0]] -= sum(target.weight for target in targets)
        return order


def first(targets: Sequence[Target], client: Client) -> Sequence[Target]:
    """The first available target; the others are its backups."""
    return targets


def least_connections(targets: Sequence[Target], client: Client) -> Sequence[Target]:
    """The fewest active connections for its weight; among equals, the fewest served."""
    return sorted(targets, key=lambda t: (t.active / t.weight, t.served / t.weight))


def by_source(targets: Sequence[Target], client: Client) -> Sequence[Target]:
    """The same target for all connections of a host while it is available. When a target fails,
    only its own clients move (weighted rendezvous hashing).
    """
    peer = client.peer
    source = peer.host or peer.path

    def score(target: Target) -> float:
        both = f"{source}\0{target.name}".encode(errors="surrogateescape")  # paths are any bytes
        digest = hashlib.blake2b(both, digest_size=8).digest()
        fraction = (int.from_bytes(digest, "big") + 1) / ((1 << 64) + 1)
        return math.log(fraction) / target.weight

    return sorted(targets, key=score, reverse=True)


POLICIES: dict[str, Callable[[], Order]] = {
    "round-robin": RoundRobin,
    "least-connections": lambda: least_connections,
    "source": lambda: by_source,
    "first": lambda: first,
}
