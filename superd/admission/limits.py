"""The limits of a service and of the daemon: how many connections, and how fast.

Runs in the worker, on the accept path. It compares the configured limits with the counts of the
ledger and the scoreboard, and with the system's load average. Never raises.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from superd.admission.access import UnixPeer
from superd.admission.bans import network_of
from superd.admission.ledger import Sources
from superd.admission.refusals import Refusal
from superd.config.model import Limits, SourceNetblock
from superd.net.patterns import IPNetwork

SECOND = 1_000_000_000  # ns
FAR_FROM_LIMIT = 1024  # connections: more than all workers accept at a time
LOAD_CACHE_TIME = SECOND  # the kernel itself updates the load average every 5 s


class RefusalNames(NamedTuple):
    """The refusals of a scope, one for each kind of limit."""

    load: Refusal
    rate: Refusal
    connections: Refusal
    source_rate: Refusal
    source_connections: Refusal


OF_SERVICE = RefusalNames(
    Refusal.LOAD,
    Refusal.RATE,
    Refusal.CONNECTIONS,
    Refusal.SOURCE_RATE,
    Refusal.SOURCE_CONNECTIONS,
)
OF_DAEMON = RefusalNames(
    Refusal.DAEMON_LOAD,
    Refusal.DAEMON_RATE,
    Refusal.DAEMON_CONNECTIONS,
    Refusal.DAEMON_SOURCE_RATE,
    Refusal.DAEMON_SOURCE_CONNECTIONS,
)


@dataclass(frozen=True)
class Bucket:
    """A token bucket, as the generic cell rate algorithm (ITU-T I.371), whose only state is the
    time at which the next event is due. `interval` is in ns; `burst` is the number of events that
    may happen at once.
    """

    interval: int
    burst: int

    @classmethod
    def of(cls, rate: float, burst: int) -> Bucket | None:
        """Return the bucket for a rate per second; None for no limit."""
        if not rate:
            return None
        return cls(round(SECOND / rate), burst or max(1, int(rate)))

    def wait(self, due: int, now: int) -> int:
        """Return the ns until the next event is allowed; 0 if one is allowed now."""
        return max(0, due - now - self.interval * (self.burst - 1))

    def after(self, due: int, now: int) -> int:
        """Return when the next event is due after an event now."""
        return max(due, now) + self.interval


class Load:
    """The system's load average of the last minute, read at most once a second."""

    def __init__(self, ask: Callable[[], float] = lambda: os.getloadavg()[0]) -> None:
        self._ask = ask
        self._value = 0.0
        self._until = 0

    def at(self, now: int) -> float:
        if now >= self._until:
            self._value = self._ask()
            self._until = now + LOAD_CACHE_TIME
        return self._value


def source_of(who: str | UnixPeer, netblock: SourceNetblock) -> bytes:
    """Return what identifies a client's source: the network part of its address, or the user of a
    unix socket's peer. IPv4-mapped IPv6 is IPv4.
    """
    if isinstance(who, UnixPeer):
        return b"user:%d" % who.uid
    if ":" in who:
        packed = socket.inet_pton(socket.AF_INET6, who.partition("%")[0])
        if not packed.startswith(_MAPPED):
            return _prefix(packed, netblock.ipv6)
        packed = packed[12:]
    else:
        packed = socket.inet_aton(who)
    return packed if netblock.ipv4 == 32 else _prefix(packed, netblock.ipv4)


def netblock_of(host: str, netblock: SourceNetblock) -> IPNetwork:
    """Return the network of a numeric host that counts as one source."""
    network = network_of(host)
    bits = netblock.ipv4 if network.version == 4 else netblock.ipv6
    return network.supernet(new_prefix=bits)


_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291, 2.5.5.2


def _prefix(packed: bytes, bits: int) -> bytes:
    """Return the first bits of an address and their number, which keeps the families apart."""
    whole = len(packed)
    number = int.from_bytes(packed, "big") >> (whole * 8 - bits)
    return number.to_bytes(whole, "big") + bytes([bits])


class Scope:
    """The limits of one service, or of the daemon over all services, with their counters.

    `active` holds the number of connections of each worker; `sources` and `due` belong to the
    ledger. The caller must hold the ledger's lock, except for `leave`.
    """

    def __init__(
        self,
        limits: Limits,
        names: RefusalNames,
        active: memoryview,
        due: memoryview,
        sources: Sources,
        load: Load,
    ) -> None:
        self.names = names
        self.most = limits.max_connections
        self.most_per_source = limits.max_per_source
        self.bucket = Bucket.of(limits.rate, limits.burst)
        self.source_bucket = Bucket.of(limits.rate_per_source, limits.burst_per_source)
        self.netblock = limits.source_netblock
        self.max_load = limits.max_load
        self.has_limits = bool(self.most or self.bucket or self.max_load)
        self.limits_sources = bool(self.most_per_source or self.source_bucket)
        self._active = active
        self._due = due
        self._sources = sources
        self._load = load

    def pace_refusal(self, now: int) -> Refusal | None:
        """Return the refusal if the load or the rate is at its limit."""
        if self.max_load and self._load.at(now) >= self.max_load:
            return self.names.load
        if self.bucket is not None and self.bucket.wait(self._due[0], now):
            return self.names.rate
        return None

    def room_refusal(self) -> Refusal | None:
        """Return the refusal if the number of connections is at its limit."""
        return self.names.connections if self.most and sum(self._active) >= self.most else None

    def is_far_from_limits(self, now: int) -> bool:
        """Tell whether the limits are so far away that no slot needs to be reserved."""
        if self.most and self.most - sum(self._active) < FAR_FROM_LIMIT:
            return False
        bucket = self.bucket
        if bucket is not None and bucket.wait(self._due[0] + FAR_FROM_LIMIT * bucket.interval, now):
            return False
        return not self.max_load

    def source_refusal(self, slot: int, now: int) -> Refusal | None:
        """Return the refusal if the source in a slot is at one of its limits."""
        if slot < 0:
            return Refusal.SOURCES
        bucket = self.source_bucket
        if bucket is not None and bucket.wait(self._sources.due(slot), now):
            return self.names.source_rate
        if self.most_per_source and self._sources.count(slot) >= self.most_per_source:
            return self.names.source_connections
        return None

    def wait(self, now: int) -> int:
        """Return the ns until the rate allows the next connection."""
        return 0 if self.bucket is None else self.bucket.wait(self._due[0], now)

    def slot(self, who: str | UnixPeer, now: int, *, may_be_forged: bool) -> int:
        """Return the slot of a client's source; -1 if the ledger has no room for it."""
        source = source_of(who, self.netblock)
        return self._sources.slot(source, now, may_be_forged=may_be_forged)

    def take(self, now: int) -> None:
        """Take a token of the scope's rate."""
        if self.bucket is not None:
            self._due[0] = self.bucket.after(self._due[0], now)

    def give_back(self) -> None:
        """Return a token that was not used."""
        if self.bucket is not None:
            self._due[0] = max(0, self._due[0] - self.bucket.interval)

    def take_source(self, slot: int, now: int, *, is_connection: bool) -> None:
        """Take a token of the source's rate, and count its connection."""
        bucket = self.source_bucket
        if bucket is not None:
            self._sources.set_due(slot, bucket.after(self._sources.due(slot), now))
        if is_connection:
            self._sources.enter(slot)

    def leave(self, slot: int) -> None:
        """Stop counting a connection of a source."""
        self._sources.leave(slot)
