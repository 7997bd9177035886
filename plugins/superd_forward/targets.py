"""The targets of a service: who is next, and who is left out for having failed.

Each worker keeps its own account of them. Nothing here touches the network.
"""

from __future__ import annotations

import hashlib
import math
import socket
import time
from collections.abc import Callable, Sequence

from superd.plugin import (
    Address,
    Client,
    Destination,
    Level,
    Transport,
)

NONBLOCKING = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


class Way:
    """An address, and what it takes to connect there, worked out once. `may_loop` tells that it
    might lead back to superd itself.
    """

    __slots__ = ("address", "family", "is_tcp", "is_unix", "kind", "may_loop", "name", "sockaddr")

    def __init__(self, address: Address, *, may_loop: bool) -> None:
        self.address = address
        self.may_loop = may_loop
        self.name = str(address)
        self.family = int(address.family)
        self.kind = address.transport.socket_type | NONBLOCKING
        self.sockaddr = address.sockaddr
        self.is_tcp = address.transport is Transport.TCP
        self.is_unix = address.transport.is_unix


class Target:
    """One place to forward to. `way` is None where a name has to be looked up first; `in_a_row`
    is how often it has failed without serving since.

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
        is_ours: Callable[[Transport, int], bool],
        log: Callable[[Level, str], None],
    ) -> None:
        self.destination = destination
        self.datagrams = datagrams
        self._is_ours = is_ours
        self.host = destination.host
        self.way = None if destination.is_name else self.at(destination.host)
        self.name = str(destination.address(destination.host, datagrams=datagrams))
        self.weight = weight
        self.active = self.served = self.failures = 0
        self.last_error = ""
        self.is_down = False  # as probes have found
        self.in_a_row = 0
        self._out_until = 0.0
        self._fail_after = fail_after
        self._retry_after = retry_after
        self._log = log

    def at(self, host: str) -> Way:
        """Return the way to it on one of the hosts that its name stands for."""
        address = self.destination.address(host, datagrams=self.datagrams)
        is_ours = self._is_ours(address.transport, address.port)
        return Way(address, may_loop=is_ours or address.transport.is_unix)

    def is_in(self, now: float) -> bool:
        """Tell whether clients are sent there, by the monotonic clock."""
        return not self.is_down and now >= self._out_until

    def entered(self) -> None:
        """Count a client that is being connected."""
        self.active += 1

    def left(self) -> None:
        """Count it no more."""
        self.active -= 1

    def took(self) -> None:
        """Count a client that it has taken, and may still send away."""
        self.served += 1

    def succeeded(self) -> None:
        """Take note that it serves."""
        if self.in_a_row:
            if self._out_until:
                self._log("info", f"target {self.name} serves again")
            self.in_a_row, self._out_until = 0, 0.0

    def failed(self, why: str) -> None:
        """Take note that it does not, and leave it out if that has happened too often."""
        self.failures += 1
        self.in_a_row += 1
        self.last_error = why
        if self._fail_after and self.in_a_row >= self._fail_after:
            if not self._out_until:
                text = f"target {self.name} is left out for {self._retry_after:g} s: {why}"
                self._log("warning", text)
            self._out_until = time.monotonic() + self._retry_after

    def probed(self, why: str) -> None:
        """Take note of what probes have found: what is wrong, or nothing."""
        if self.is_down != bool(why):
            self.is_down = bool(why)
            told = f"is down: {why}" if why else "is up"
            self._log("warning" if why else "info", f"target {self.name} {told}")
        if why:
            self.last_error = why

    def row(self, now: float) -> dict[str, str | int | float]:
        """Return what `superd status` shows of it."""
        state = "down" if self.is_down else "up" if self.is_in(now) else "left out"
        return {
            "target": self.name, "state": state, "weight": self.weight, "active": self.active,
            "served": self.served, "failures": self.failures, "last-error": self.last_error,
        }  # fmt: skip


Order = Callable[[Sequence[Target], Client], Sequence[Target]]


class Targets:
    """All targets of one kind, in the order of a policy."""

    def __init__(self, targets: Sequence[Target], order: Order) -> None:
        self.all = tuple(targets)
        self._order = order
        self._rotation = 0

    def order(self, client: Client) -> Sequence[Target]:
        """Return whom to try for a client, one after the other; those that are left out come last,
        as the client has nowhere else to go.
        """
        if len(self.all) == 1:
            return self.all
        now = time.monotonic()
        able = [target for target in self.all if target.is_in(now)]
        unable = [target for target in self.all if target not in able]
        return (*self._order(able, client), *unable)


class RoundRobin:
    """Each in its turn, as often as its weight says, and as evenly as that goes: who is furthest
    behind its share is next.
    """

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
    """The first that is able; the others are for when it is not."""
    return targets


def least_connections(targets: Sequence[Target], client: Client) -> Sequence[Target]:
    """Who has the fewest connections for its weight; of equals, who has served the least."""
    return sorted(targets, key=lambda t: (t.active / t.weight, t.served / t.weight))


def by_source(targets: Sequence[Target], client: Client) -> Sequence[Target]:
    """The same for all connections of a host, as long as it is able; when one fails, only its own
    clients go elsewhere (rendezvous hashing, weighted).
    """
    peer = client.peer
    source = peer.host or peer.path

    def score(target: Target) -> float:
        both = f"{source}\0{target.name}".encode(errors="surrogateescape")  # paths may be no text
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
