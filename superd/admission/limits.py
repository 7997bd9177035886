"""How many may come in, and how fast: the limits of a service and of the daemon.

Runs in the worker, on the accept path. Decides by the entry's limits and by what the ledger and
the scoreboard count; looks at nothing else but the system's load. Never raises.
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
PLENTY = 1024  # connections: more than all workers accept at a time
LOAD_IS_VALID = SECOND  # the system itself counts anew every 5 s


class Words(NamedTuple):
    """What each limit of a scope is called when it refuses."""

    load: Refusal
    rate: Refusal
    connections: Refusal
    source_rate: Refusal
    source_connections: Refusal


OF_SERVICE = Words(
    Refusal.LOAD,
    Refusal.RATE,
    Refusal.CONNECTIONS,
    Refusal.SOURCE_RATE,
    Refusal.SOURCE_CONNECTIONS,
)
OF_DAEMON = Words(
    Refusal.DAEMON_LOAD,
    Refusal.DAEMON_RATE,
    Refusal.DAEMON_CONNECTIONS,
    Refusal.DAEMON_SOURCE_RATE,
    Refusal.DAEMON_SOURCE_CONNECTIONS,
)


@dataclass(frozen=True)
class Bucket:
    """A token bucket, as the generic cell rate algorithm has it (ITU-T I.371): all that is kept
    is when the next event is due. `interval` is in ns, `burst` how many may come at once.
    """

    interval: int
    burst: int

    @classmethod
    def of(cls, rate: float, burst: int) -> Bucket | None:
        """Return the bucket of a rate a second; None for no limit."""
        if not rate:
            return None
        return cls(round(SECOND / rate), burst or max(1, int(rate)))

    def wait(self, due: int, now: int) -> int:
        """Return the ns until an event may come; 0 if one may now."""
        return max(0, due - now - self.interval * (self.burst - 1))

    def after(self, due: int, now: int) -> int:
        """Return when the next event is due, once one has come."""
        return max(due, now) + self.interval


class Load:
    """The system's load average of the last minute, asked for once a second."""

    def __init__(self, ask: Callable[[], float] = lambda: os.getloadavg()[0]) -> None:
        self._ask = ask
        self._value = 0.0
        self._until = 0

    def at(self, now: int) -> float:
        if now >= self._until:
            self._value = self._ask()
            self._until = now + LOAD_IS_VALID
        return self._value


def source_of(who: str | UnixPeer, netblock: SourceNetblock) -> bytes:
    """Return what makes somebody one source: the first part of a numeric host, where IPv4-mapped
    IPv6 is IPv4, or the user at the other end of a unix socket.
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
    """Return the network that makes a numeric host one source."""
    network = network_of(host)
    bits = netblock.ipv4 if network.version == 4 else netblock.ipv6
    return network.supernet(new_prefix=bits)


_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291, 2.5.5.2


def _prefix(packed: bytes, bits: int) -> bytes:
    """Return the first bits of an address, with its length so that the families differ."""
    whole = len(packed)
    number = int.from_bytes(packed, "big") >> (whole * 8 - bits)
    return number.to_bytes(whole, "big") + bytes([bits])


class Scope:
    """The limits of one service, or of the daemon over all services, with what is counted.

    `active` has the numbers of connections, one a worker; `sources` and `due` are those of the
    ledger, whose lock is to be held by who calls any method but `leave`.
    """

    def __init__(
        self,
        limits: Limits,
        words: Words,
        active: memoryview,
        due: memoryview,
        sources: Sources,
        load: Load,
    ) -> None:
        self.words = words
        self.most = limits.max_connections
        self.most_per_source = limits.max_per_source
        self.bucket = Bucket.of(limits.rate, limits.burst)
        self.source_bucket = Bucket.of(limits.rate_per_source, limits.burst_per_source)
        self.netblock = limits.source_netblock
        self.max_load = limits.max_load
        self.has_own = bool(self.most or self.bucket or self.max_load)
        self.knows_sources = bool(self.most_per_source or self.source_bucket)
        self._active = active
        self._due = due
        self._sources = sources
        self._load = load

    def pace_refusal(self, now: int) -> Refusal | None:
        """Return which limit of load and speed keeps the next one out."""
        if self.max_load and self._load.at(now) >= self.max_load:
            return self.words.load
        if self.bucket is not None and self.bucket.wait(self._due[0], now):
            return self.words.rate
        return None

    def room_refusal(self) -> Refusal | None:
        """Return the limit of connections where it is reached."""
        return self.words.connections if self.most and sum(self._active) >= self.most else None

    def has_plenty(self, now: int) -> bool:
        """Tell whether so much is left that nobody needs to take a place in advance."""
        if self.most and self.most - sum(self._active) < PLENTY:
            return False
        bucket = self.bucket
        if bucket is not None and bucket.wait(self._due[0] + PLENTY * bucket.interval, now):
            return False
        return not self.max_load

    def source_refusal(self, slot: int, now: int) -> Refusal | None:
        """Return which limit for each source keeps this one out."""
        if slot < 0:
            return Refusal.SOURCES
        bucket = self.source_bucket
        if bucket is not None and bucket.wait(self._sources.due(slot), now):
            return self.words.source_rate
        if self.most_per_source and self._sources.count(slot) >= self.most_per_source:
            return self.words.source_connections
        return None

    def wait(self, now: int) -> int:
        """Return the ns until the rate lets the next one in."""
        return 0 if self.bucket is None else self.bucket.wait(self._due[0], now)

    def slot(self, who: str | UnixPeer, now: int, *, may_be_forged: bool) -> int:
        """Return where somebody's source is counted; -1 where there is no place for it."""
        source = source_of(who, self.netblock)
        return self._sources.slot(source, now, may_be_forged=may_be_forged)

    def take(self, now: int) -> None:
        """Use up a token of its own rate."""
        if self.bucket is not None:
            self._due[0] = self.bucket.after(self._due[0], now)

    def give_back(self) -> None:
        """Return a token: nobody has come for it."""
        if self.bucket is not None:
            self._due[0] = max(0, self._due[0] - self.bucket.interval)

    def take_source(self, slot: int, now: int, *, is_connection: bool) -> None:
        """Use up a token of the source's, and count its connection."""
        bucket = self.source_bucket
        if bucket is not None:
            self._sources.set_due(slot, bucket.after(self._sources.due(slot), now))
        if is_connection:
            self._sources.enter(slot)

    def leave(self, slot: int) -> None:
        """Count a source's connection no more."""
        self._sources.leave(slot)
