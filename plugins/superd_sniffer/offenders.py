"""Counts the recent knocks of each host, to find those to ban.

Keeps a bounded number of hosts: the latest to have knocked. Pure; never raises.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Sequence

from superd.plugin import IPNetwork

MAX_HOSTS = 10_000


class Offenders:
    """Finds hosts that have knocked `after` times within `within` seconds, except those of networks
    that are `never` banned.
    """

    def __init__(self, after: int, within: float, never: Sequence[IPNetwork]) -> None:
        self._after = after
        self._within = within
        self._never = tuple(never)
        self._knocks: dict[str, deque[float]] = {}

    def count(self, host: str, now: float) -> bool:
        """Count a knock of a numeric host; return whether to ban it. Then its count starts at 0."""
        knocks = self._knocks.pop(host, None) or deque(maxlen=self._after)
        knocks.append(now)
        if len(knocks) == self._after and now - knocks[0] <= self._within:
            return not self._is_exempt(host)
        while len(self._knocks) >= MAX_HOSTS:
            del self._knocks[next(iter(self._knocks))]
        self._knocks[host] = knocks
        return False

    def _is_exempt(self, host: str) -> bool:
        address = ipaddress.ip_address(host.partition("%")[0])
        return any(address.version == net.version and address in net for net in self._never)
