"""Admission: the one decision whether a client is served, for all kinds of plugins.

Runs in the worker, on the accept path. It depends on the rules of the entry, the counters, the
client's address and the time; it never looks at a socket. Never raises.

The order is: bans, allow and deny, access-times, max-load, rate, the limits of the source, and
max-connections; of each, the service's limit comes before the daemon's. A refused client uses up no
limit.

If the rules depend on the client's name, the limits are checked first. The client keeps its slot
during the look-up and counts against every limit. If it is then refused, it returns everything that
it had taken, except the token of its source: the source's rate thus limits the look-ups too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from superd.admission.access import UnixPeer, Verdict
from superd.admission.bans import BanTable
from superd.admission.ledger import Ledger, Lock
from superd.admission.limits import OF_DAEMON, OF_SERVICE, Load, Scope
from superd.admission.refusals import Refusal
from superd.admission.rules import Rules, Who
from superd.admission.scoreboard import ALL, Count, Scoreboard
from superd.config.model import Limits, Service

FULL_RETRY = 20_000_000  # ns until a worker checks again whether other workers have a free slot
LOCKED_RETRY = 1_000_000  # ns

# cached: an enumeration is slow to look up, and these are used for each connection
_ACTIVE = int(Count.ACTIVE)
_ADMITTED = Verdict.ADMITTED

NOT_OF_SOURCE = {name for names in (OF_SERVICE, OF_DAEMON) for name in names[:3]}

Ticket = Sequence[int]  # the slots of a client's source, one for each scope that limits sources
NO_SOURCE: Ticket = ()


@dataclass(frozen=True)
class Unnamed:
    """A client that has its slots, but whose name must be looked up before it is admitted."""

    ticket: Ticket


class Counters(NamedTuple):
    """The counters of one worker: those that all workers share, and its own slot in them."""

    ledger: Ledger
    scoreboard: Scoreboard
    worker_slot: int
    load: Load
    clock: Callable[[], int] = time.monotonic_ns


@dataclass(eq=False)
class Gate:
    """Decides for one service in one worker. `counts` are this worker's counters for the service,
    and `counts_of_all` those for all services.

    If clients wait at the service's limits, a slot is reserved before a connection is accepted:
    `reserve`, then `admit`, or `unreserve` if no connection was pending. Otherwise, and while the
    limits are far away, `admit` alone is enough. A plugin that gets a socket itself has a slot
    while it runs: `reserve_for_handoff`, for a datagram `admit_datagram`, and then `use_reserved`
    or `unreserve`.
    """

    rules: Rules
    scopes: Sequence[Scope]  # those with a limit
    lock: Lock
    counts: memoryview
    counts_of_all: memoryview
    waits: bool
    clock: Callable[[], int]

    def __post_init__(self) -> None:
        self._own = [scope for scope in self.scopes if scope.has_limits]
        self._by_source = [scope for scope in self.scopes if scope.limits_sources]
        self.waits = self.waits and bool(self._own)
        self._has_reserved = False

    @classmethod
    def of(
        cls, name: str, entry: Service, daemon: Limits, counters: Counters, bans: BanTable | None
    ) -> Gate:
        """Return the gate of a service, with the limits of its entry and the daemon's."""
        ledger, board, load = counters.ledger, counters.scoreboard, counters.load
        slot = counters.worker_slot
        scopes = [
            Scope(limits, words, active, ledger.rate(scope), ledger.sources(scope, slot), load)
            for limits, words, active, scope in (
                (entry, OF_SERVICE, board.active(name), name),
                (daemon, OF_DAEMON, board.active(ALL), ALL),
            )
        ]
        limiting = [scope for scope in scopes if scope.has_limits or scope.limits_sources]
        waits = entry.on_limit in (None, "wait")
        rows = board.row(slot, name), board.row(slot, ALL)
        return cls(Rules.of(entry, bans), limiting, ledger.lock, *rows, waits, counters.clock)

    @property
    def has_rules(self) -> bool:
        """Whether any client could be refused."""
        rules = self.rules
        return any((rules.access, rules.times, self.scopes)) or rules.bans is not None

    @property
    def asks_user(self) -> bool:
        """Whether the decision depends on the peer of a unix socket."""
        return self.rules.access is not None or bool(self._by_source)

    def reserve(self) -> int:
        """Reserve a slot for the next connection and return 0, or the ns to wait for one. Far from
        the limits none is reserved.
        """
        now = self.clock()
        for scope in self._own:
            if not scope.is_far_from_limits(now):
                return self._reserve(now)
        return 0

    def reserve_for_handoff(self) -> int:
        """Reserve a slot for a plugin that gets a socket itself, as `reserve` does, but always."""
        return self._reserve(self.clock())

    def _reserve(self, now: int) -> int:
        if not self.lock.acquire():
            return LOCKED_RETRY
        try:
            for scope in self._own:
                if scope.pace_refusal(now) or scope.room_refusal():
                    return scope.wait(now) or FULL_RETRY
            for scope in self._own:
                scope.take(now)
            self._enter()
            self._has_reserved = True
        finally:
            self.lock.release()
        return 0

    def use_reserved(self) -> None:
        """Keep the reserved slot until `leave`."""
        self._has_reserved = False

    def unreserve(self) -> None:
        """Return the reserved slot, if there is one."""
        if not self._has_reserved:
            return
        self._has_reserved = False
        self._exit()
        self._give_back()

    def _give_back(self) -> None:
        """Return the tokens of a client that is not served."""
        if any(scope.bucket for scope in self._own) and self.lock.acquire():
            for scope in self._own:
                scope.give_back()
            self.lock.release()

    def admit(self, who: Who) -> Ticket | Refusal | Unnamed:
        """Admit a connection, refuse it, or return Unnamed if that depends on the client's name.

        After Unnamed the caller looks the name up and calls `admit_named`.
        """
        judgement = self.rules.judge(who, time.time())
        if judgement is _ADMITTED:
            return self._counted_connection(who)
        if isinstance(judgement, Refusal):
            self.unreserve()
            return judgement
        ticket = self._counted_connection(who)
        return ticket if isinstance(ticket, Refusal) else Unnamed(ticket)

    def admit_named(self, host: str, name: str, ticket: Ticket) -> Ticket | Refusal:
        """Admit a connection by the name of its host, or refuse it and free its slots; "" is no
        name.
        """
        judgement = self.rules.judge_named(host, name, time.time())
        if not isinstance(judgement, Refusal):
            return ticket
        self.leave(ticket)
        self._give_back()
        return judgement

    def _counted_connection(self, who: Who, *, may_be_forged: bool = False) -> Ticket | Refusal:
        if not self.scopes:
            self._enter()
            return NO_SOURCE
        ticket = self._counted(who, is_connection=True, may_be_forged=may_be_forged)
        if isinstance(ticket, Refusal):
            self.unreserve()
        self._has_reserved = False
        return ticket

    def may_wait(self, refusal: Refusal) -> bool:
        """Tell whether an accepted connection waits until the limit that refused it has room."""
        return self.waits and refusal in NOT_OF_SOURCE

    def admit_datagram(self, who: Who) -> Refusal | None:
        """Return why a datagram is refused, or None."""
        if refusal := self._datagram_refusal(who):
            return refusal
        if not self.scopes:
            return None
        ticket = self._counted(who, is_connection=False, may_be_forged=True)
        return ticket if isinstance(ticket, Refusal) else None

    def admit_flow(self, who: Who) -> Ticket | Refusal:
        """Admit a source whose datagrams are served like a connection, or refuse it."""
        return self._datagram_refusal(who) or self._counted_connection(who, may_be_forged=True)

    def _datagram_refusal(self, who: Who) -> Refusal | None:
        """Check the rules for a datagram. Names are not looked up: the source counts as unnamed."""
        judgement = self.rules.judge(who, time.time())
        if judgement is Verdict.DEPENDS_ON_NAME and not isinstance(who, UnixPeer):
            judgement = self.rules.judge_named(who, "", time.time())
        return judgement if isinstance(judgement, Refusal) else None

    def _counted(self, who: Who, *, is_connection: bool, may_be_forged: bool) -> Ticket | Refusal:
        """Check all limits except those of the reservation, and then use them up."""
        now = self.clock()
        own = () if self._has_reserved else self._own
        if not (own or self._by_source):
            return NO_SOURCE
        if not self.lock.acquire():
            return Refusal.BUSY
        try:
            for scope in own:
                if refusal := scope.pace_refusal(now):
                    return refusal
            slots = []
            for scope in self._by_source:
                slot = scope.slot(who, now, may_be_forged=may_be_forged)
                if refusal := scope.source_refusal(slot, now):
                    return refusal
                slots.append(slot)
            if is_connection:
                for scope in own:
                    if refusal := scope.room_refusal():
                        return refusal
                if not self._has_reserved:
                    self._enter()
            for scope in own:
                scope.take(now)
            for number, scope in enumerate(self._by_source):
                scope.take_source(slots[number], now, is_connection=is_connection)
        finally:
            self.lock.release()
        return slots

    def leave(self, ticket: Ticket) -> None:
        """Free the slots of a connection that has ended."""
        self._exit()
        if ticket:
            for scope, slot in zip(self._by_source, ticket, strict=True):
                scope.leave(slot)

    def _enter(self) -> None:
        self.counts[_ACTIVE] += 1
        self.counts_of_all[_ACTIVE] += 1

    def _exit(self) -> None:
        self.counts[_ACTIVE] -= 1
        self.counts_of_all[_ACTIVE] -= 1
