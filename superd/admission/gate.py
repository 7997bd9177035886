"""Who comes in: the one decision that plugins, programs and forwards have in common.

Runs in the worker, on the accept path. Decides by the rules of the entry, by what is counted, by
who comes and by the time; it never looks at a socket. Never raises.

In order: bans, allow and deny, access-times, max-load, rate, those for each source, and then
max-connections; first the service's own and then the daemon's. A refused client uses up nothing.

Where its name has to be asked for, a client meets the limits first and has its place meanwhile:
who waits for a name is counted like anybody. If it is refused then, it gives back what it has taken
but the token of its source, whose look-ups so have the source's rate.
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

RETRY = 20_000_000  # ns until it is looked again whether a connection has ended elsewhere
LOCKED_RETRY = 1_000_000

# looked up once: they are used for each connection
_ACTIVE = int(Count.ACTIVE)
_ADMITTED = Verdict.ADMITTED

OWN = {word for words in (OF_SERVICE, OF_DAEMON) for word in words[:3]}  # not those of a source

Ticket = Sequence[int]  # the slots of a client's source, one for each scope that knows sources
NO_SOURCE: Ticket = ()


@dataclass(frozen=True)
class Unnamed:
    """A client that has its place, as the ticket says, but whose name is to be asked for."""

    ticket: Ticket


class Books(NamedTuple):
    """Where one worker counts: what it shares with the others, and its own place there."""

    ledger: Ledger
    scoreboard: Scoreboard
    place: int
    load: Load
    clock: Callable[[], int] = time.monotonic_ns


@dataclass(eq=False)
class Gate:
    """Decides for one service in one worker. `counts` are the worker's of the service, and
    `counts_of_all` those of all its services together.

    Where clients wait at the service's own limits, a place is taken before one is accepted:
    `reserve`, then `admit`, or `unreserve` where nobody came. Elsewhere, and where there is plenty
    of room, `admit` does it all.
    """

    rules: Rules
    scopes: Sequence[Scope]  # those that limit anything
    lock: Lock
    counts: memoryview
    counts_of_all: memoryview
    waits: bool
    clock: Callable[[], int]

    def __post_init__(self) -> None:
        self._own = [scope for scope in self.scopes if scope.has_own]
        self._by_source = [scope for scope in self.scopes if scope.knows_sources]
        self.waits = self.waits and bool(self._own)
        self._has_reserved = False

    @classmethod
    def of(
        cls, name: str, entry: Service, daemon: Limits, books: Books, bans: BanTable | None
    ) -> Gate:
        """Return the gate of a service, with the limits of its entry and the daemon's."""
        if entry.wait:
            entry = entry.model_copy(update={"max_connections": 1})  # one has the socket at a time
        ledger, board, place, load = books.ledger, books.scoreboard, books.place, books.load
        scopes = [
            Scope(limits, words, active, ledger.rate(scope), ledger.sources(scope, place), load)
            for limits, words, active, scope in (
                (entry, OF_SERVICE, board.active(name), name),
                (daemon, OF_DAEMON, board.active(ALL), ALL),
            )
        ]
        limiting = [scope for scope in scopes if scope.has_own or scope.knows_sources]
        waits = entry.on_limit in (None, "wait") or entry.wait
        rows = board.row(place, name), board.row(place, ALL)
        return cls(Rules.of(entry, bans), limiting, ledger.lock, *rows, waits, books.clock)

    @property
    def has_rules(self) -> bool:
        """Whether anybody might be refused."""
        rules = self.rules
        return any((rules.access, rules.times, self.scopes)) or rules.bans is not None

    @property
    def asks_user(self) -> bool:
        """Whether it matters who is at the other end of a unix socket."""
        return self.rules.access is not None or bool(self._by_source)

    def reserve(self) -> int:
        """Take a place for who is to be accepted next; return the ns to wait if there is none."""
        now = self.clock()
        for scope in self._own:
            if not scope.has_plenty(now):
                break
        else:
            return 0
        if not self.lock.acquire():
            return LOCKED_RETRY
        try:
            for scope in self._own:
                if scope.pace_refusal(now) or scope.room_refusal():
                    return scope.wait(now) or RETRY
            for scope in self._own:
                scope.take(now)
            self._enter()
            self._has_reserved = True
        finally:
            self.lock.release()
        return 0

    def unreserve(self) -> None:
        """Give the place back, if one was taken."""
        if not self._has_reserved:
            return
        self._has_reserved = False
        self._exit()
        self._give_back()

    def _give_back(self) -> None:
        """Return the tokens that a client has taken who is not served."""
        if any(scope.bucket for scope in self._own) and self.lock.acquire():
            for scope in self._own:
                scope.give_back()
            self.lock.release()

    def admit(self, who: Who) -> Ticket | Refusal | Unnamed:
        """Let a connection in, or say why not, or that it depends on the client's name.

        Then `admit_named` is to be called once that was asked for.
        """
        judgement = self.rules.judge(who, time.time())
        if judgement is _ADMITTED:
            return self._placed(who)
        if isinstance(judgement, Refusal):
            self.unreserve()
            return judgement
        ticket = self._placed(who)
        return ticket if isinstance(ticket, Refusal) else Unnamed(ticket)

    def admit_named(self, host: str, name: str, ticket: Ticket) -> Ticket | Refusal:
        """Let a connection in by the name of its host, or take its place away and say why; "" is
        no name.
        """
        judgement = self.rules.judge_named(host, name, time.time())
        if not isinstance(judgement, Refusal):
            return ticket
        self.leave(ticket)
        self._give_back()
        return judgement

    def _placed(self, who: Who, *, may_be_forged: bool = False) -> Ticket | Refusal:
        if not self.scopes:
            self._enter()
            return NO_SOURCE
        ticket = self._counted(who, is_connection=True, may_be_forged=may_be_forged)
        if isinstance(ticket, Refusal):
            self.unreserve()
        self._has_reserved = False
        return ticket

    def may_wait(self, refusal: Refusal) -> bool:
        """Tell whether a client that was accepted and then found a limit reached is to wait."""
        return self.waits and refusal in OWN

    def admit_datagram(self, who: Who) -> Refusal | None:
        """Say why a datagram is not to be served."""
        if refusal := self._datagram_refusal(who):
            return refusal
        if not self.scopes:
            return None
        ticket = self._counted(who, is_connection=False, may_be_forged=True)
        return ticket if isinstance(ticket, Refusal) else None

    def admit_flow(self, who: Who) -> Ticket | Refusal:
        """Let in a source whose datagrams are carried as a connection is, or say why not."""
        return self._datagram_refusal(who) or self._placed(who, may_be_forged=True)

    def _datagram_refusal(self, who: Who) -> Refusal | None:
        """Judge who has sent a datagram. Nobody waits for a name here: it has none."""
        judgement = self.rules.judge(who, time.time())
        if judgement is Verdict.DEPENDS_ON_NAME and not isinstance(who, UnixPeer):
            judgement = self.rules.judge_named(who, "", time.time())
        return judgement if isinstance(judgement, Refusal) else None

    def _counted(self, who: Who, *, is_connection: bool, may_be_forged: bool) -> Ticket | Refusal:
        """Check all limits but those that were seen to in advance, and then use them up."""
        now = self.clock()
        own = () if self._has_reserved and is_connection else self._own
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
        """Take note that a connection has ended."""
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
