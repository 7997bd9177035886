"""The rules that need no counters: bans, allow and deny, and access-times.

Used in workers, on the accept path, and by `superd explain`, which thus gives the same answers.
Never raises.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from superd.admission.access import AccessList, Rule, UnixPeer, Verdict
from superd.admission.bans import BanTable
from superd.admission.refusals import Refusal
from superd.admission.times import AccessTimes
from superd.config.lists import ListFile
from superd.config.model import Access
from superd.net.patterns import HostName

Who = str | UnixPeer  # a numeric host, or the peer of a unix socket

_ADMITTED = Verdict.ADMITTED  # cached: an enumeration is slow to look up

NOBODY_KNOWN = UnixPeer(-1)  # the sender of a datagram to a unixgram socket is not known


class Rules:
    """The rules of one service."""

    def __init__(
        self, access: AccessList | None, times: AccessTimes | None, bans: BanTable | None
    ) -> None:
        self.access = access
        self.times = times
        self.bans = bans

    @classmethod
    def of(cls, entry: Access, bans: BanTable | None) -> Rules:
        """Return the rules of an entry, with the time zone loaded."""
        times = None
        if entry.access_times is not None:
            times = AccessTimes(entry.access_times, entry.time_zone)
        return cls(access_list(entry), times, bans)

    def judge(self, who: Who, now: float) -> Refusal | Verdict:
        """Return a refusal, ADMITTED or DEPENDS_ON_NAME; `now` is in seconds since 1970."""
        if isinstance(who, UnixPeer):
            access = self.access
            if access is not None and not access.admits(access.rule_for_user(who)):
                return Refusal.ACCESS
            return self._by_time(now)
        if self.bans is not None and self.bans.is_banned(who, time.monotonic_ns()):
            return Refusal.BANNED
        if self.access is not None:
            verdict = self.access.verdict(who)
            if verdict is not _ADMITTED:
                return Refusal.ACCESS if verdict is Verdict.REFUSED else verdict
        return self._by_time(now) if self.times is not None else _ADMITTED

    def judge_named(self, host: str, name: str, now: float) -> Refusal | Verdict:
        """Decide on a host whose name was looked up; "" if it could not be confirmed."""
        if self.access is not None and not self.access.admits_named(host, name):
            return Refusal.ACCESS
        return self._by_time(now)

    def _by_time(self, now: float) -> Refusal | Verdict:
        is_open = self.times is None or self.times.admits(now)
        return _ADMITTED if is_open else Refusal.TIMES


def access_list(
    entry: Access, where: Callable[[str, int | None], str] = lambda key, number: ""
) -> AccessList | None:
    """Return the access list of an entry; `where(key, number)` gives the position of a rule."""
    rules = [Rule(True, p, where("allow", n)) for n, p in enumerate(entry.allow or ())]
    rules += [Rule(False, p, where("deny", n)) for n, p in enumerate(entry.deny)]
    for allows, files in ((True, entry.allow_file or ()), (False, entry.deny_file)):
        rules += [rule for file in files for rule in _rules_in(file, allows)]
    has_allow = entry.allow is not None or entry.allow_file is not None
    return AccessList(rules, has_allow=has_allow) if rules or has_allow else None


def has_rules(entry: Access) -> bool:
    """Tell whether an entry could refuse a client by a rule."""
    lists = (entry.deny, entry.allow_file, entry.deny_file, entry.access_times)
    return entry.allow is not None or any(lists)


def needs_names(entry: Access) -> bool:
    """Tell whether an entry has a rule for names."""
    files = (*(entry.allow_file or ()), *entry.deny_file)
    patterns = [*(entry.allow or ()), *entry.deny]
    patterns += [pattern for file in files for _, pattern in file.entries]
    return any(isinstance(pattern, HostName) for pattern in patterns)


def _rules_in(file: ListFile, allows: bool) -> list[Rule]:
    return [Rule(allows, pattern, f"{file.path}:{line}") for line, pattern in file.entries]
