"""Who has knocked how often of late, and is to be banned.

Remembers a bounded number of hosts, those that have knocked last. Pure; never raises.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Sequence

from superd.plugin import IPNetwork

MOST_HOSTS = 10_000


class Culprits:
    """Tells of a host that it has knocked `after` times `within` so many seconds, unless it is of
    one of the networks that are never banned.
    """

    def __init__(self, after: int, within: float, never: Sequence[IPNetwork]) -> None:
        self._after = after
        self._within = within
        self._never = tuple(never)
        self._knocks: dict[str, deque[float]] = {}

    def is_due(self, host: str, now: float) -> bool:
        """Count a knock of a numeric host; tell whether it is one too many."""
        knocks = self._knocks.pop(host, None) or deque(maxlen=self._after)
        knocks.append(now)
        if len(knocks) == self._after and now - knocks[0] <= self._within:
            return not self._is_spared(host)
        while len(self._knocks) >= MOST_HOSTS:
            del self._knocks[next(iter(self._knocks))]
        self._knocks[host] = knocks
        return False

    def _is_spared(self, host: str) -> bool:
        address = ipaddress.ip_address(host.partition("%")[0])
        return any(address.version == net.version and address in net for net in self._never)
