"""The access rules `allow` and `deny`.

Used in workers, on the accept path, and by `superd explain`. A look-up takes about a microsecond,
for any number of networks. Never queries the system or a name server. Never raises.

The most specific rule decides; if two are equally specific, deny does. From most to least specific:
a single address, a host name, a domain (the longer, the more specific), a network (likewise), `*`.
A range counts as the networks that it consists of.
For the peer of a unix socket: a user, a group, `*`. A client that matches no rule is refused if
there is an `allow`, even an empty one, and otherwise admitted.
"""

from __future__ import annotations

import socket
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from superd.net.addresses import unmapped
from superd.net.patterns import (
    Group,
    HostName,
    IPNetwork,
    Network,
    Pattern,
    User,
    Wildcard,
    networks_of,
)

K = TypeVar("K")


@dataclass(frozen=True)
class Rule:
    """One entry of `allow` or `deny`. `where` is its position for the operator, FILE:LINE."""

    allows: bool
    pattern: Pattern
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class UnixPeer:
    """The user and groups of a unix socket's peer (SO_PEERCRED, unix(7))."""

    uid: int
    gids: tuple[int, ...] = ()


class Verdict(Enum):
    """The decision on a client whose name is not known yet."""

    ADMITTED = "admitted"
    REFUSED = "refused"
    DEPENDS_ON_NAME = "depends on the name"


class AccessList:
    """The rules of one service. `has_allow` is whether it has an `allow` list."""

    def __init__(self, rules: Sequence[Rule], *, has_allow: bool) -> None:
        self.has_allow = has_allow
        self._everybody = _strictest(r for r in rules if isinstance(r.pattern, Wildcard))
        self._names = [r for r in rules if isinstance(r.pattern, HostName)]
        self._users = {
            pattern: rule for pattern, rule in _by_pattern(rules) if isinstance(pattern, User)
        }
        self._groups = {
            pattern: rule for pattern, rule in _by_pattern(rules) if isinstance(pattern, Group)
        }
        networks = _by_network(rules).items()
        self._ipv4 = _Intervals([(n, rule) for n, rule in networks if n.version == 4])
        self._ipv6 = _Intervals([(n, rule) for n, rule in networks if n.version == 6])

    def rule_for_host(self, host: str, name: str = "") -> Rule | None:
        """Return the rule that decides on a numeric host; `name` is its confirmed name, if any."""
        rule = self._network_rule(host)
        if name and not _is_single(rule):
            rule = self._name_rule(name) or rule
        return rule or self._everybody

    def rule_for_user(self, peer: UnixPeer) -> Rule | None:
        """Return the rule that decides on the peer of a unix socket."""
        if rule := self._users.get(User(peer.uid)):
            return rule
        groups = (self._groups.get(Group(gid)) for gid in peer.gids)
        return _strictest(rule for rule in groups if rule) or self._everybody

    def admits(self, rule: Rule | None) -> bool:
        """Tell whether a client on which `rule` decides is admitted."""
        return not self.has_allow if rule is None else rule.allows

    def verdict(self, host: str) -> Verdict:
        """Decide on a numeric host; DEPENDS_ON_NAME if a rule for names could change the result."""
        rule = self._network_rule(host)
        if self._names and not _is_single(rule):
            return Verdict.DEPENDS_ON_NAME
        return Verdict.ADMITTED if self.admits(rule or self._everybody) else Verdict.REFUSED

    def admits_named(self, host: str, name: str) -> bool:
        """Decide on a host by its confirmed name; "" if it has none."""
        return self.admits(self.rule_for_named(host, name))

    def rule_for_named(self, host: str, name: str) -> Rule | None:
        """Return the rule that decides on a host by its confirmed name; "" if it has none.

        A host without a confirmed name could have a name that is denied. If there is such a rule,
        it decides; a rule for its address has decided before.
        """
        denied = next((rule for rule in self._names if not rule.allows), None)
        return self.rule_for_host(host, name) if name or denied is None else denied

    def _network_rule(self, host: str) -> Rule | None:
        host = unmapped(host)
        if ":" in host:
            packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
            return self._ipv6.find(int.from_bytes(packed, "big"))
        return self._ipv4.find(int.from_bytes(socket.inet_aton(host), "big"))

    def _name_rule(self, name: str) -> Rule | None:
        matching = [rule for rule in self._names if _name_of(rule).matches(name)]
        if not matching:
            return None
        longest = max(map(_weight, matching))
        return _strictest(rule for rule in matching if _weight(rule) == longest)


class _Intervals:
    """Nested networks of one family as intervals that do not overlap, each with its rule."""

    def __init__(self, rules: Iterable[tuple[IPNetwork, Rule]]) -> None:
        self._starts: list[int] = [0]
        self._rules: list[Rule | None] = [None]
        ordered = sorted(
            rules,
            key=lambda item: (int(item[0].network_address), item[0].prefixlen),
        )
        enclosing: list[
            tuple[int, Rule]
        ] = []  # the networks that contain this address, each with its last one
        for network, rule in ordered:
            first = int(network.network_address)
            self._close(enclosing, first)
            self._begin(first, rule)
            enclosing.append((int(network.broadcast_address), rule))
        self._close(enclosing, None)

    def _close(self, enclosing: list[tuple[int, Rule]], until: int | None) -> None:
        """End the networks that end before `until`; the enclosing network's rule applies again."""
        while enclosing and (until is None or enclosing[-1][0] < until):
            last, _ = enclosing.pop()
            self._begin(last + 1, enclosing[-1][1] if enclosing else None)

    def _begin(self, start: int, rule: Rule | None) -> None:
        if self._starts[-1] == start:
            self._rules[-1] = rule
        else:
            self._starts.append(start)
            self._rules.append(rule)

    def find(self, address: int) -> Rule | None:
        return self._rules[bisect_right(self._starts, address) - 1]


def _by_pattern(rules: Iterable[Rule]) -> Iterable[tuple[Pattern, Rule]]:
    """Return one rule for each pattern: deny if it is in both lists."""
    return _one_of_each((rule.pattern, rule) for rule in rules).items()


def _by_network(rules: Iterable[Rule]) -> Mapping[IPNetwork, Rule]:
    """Return one rule for each network, and for each that a range consists of."""
    return _one_of_each((network, rule) for rule in rules for network in networks_of(rule.pattern))


def _one_of_each(rules: Iterable[tuple[K, Rule]]) -> dict[K, Rule]:
    found: dict[K, Rule] = {}
    for key, rule in rules:
        first = found.setdefault(key, rule)
        if first.allows and not rule.allows:
            found[key] = rule
    return found


def _strictest(rules: Iterable[Rule]) -> Rule | None:
    return min(rules, key=lambda rule: rule.allows, default=None)


def _is_single(rule: Rule | None) -> bool:
    if rule is None or not isinstance(rule.pattern, Network):
        return False
    return rule.pattern.network.prefixlen == rule.pattern.network.max_prefixlen


def _name_of(rule: Rule) -> HostName:
    assert isinstance(rule.pattern, HostName)
    return rule.pattern


def _weight(rule: Rule) -> tuple[bool, int]:
    name = _name_of(rule).name
    return (not name.startswith("."), len(name))
