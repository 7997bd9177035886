"""Counts the refusals of a flood by source, so that no record claims for a client what others did.

Runs in the worker. Memory and the number of records are bounded: sources beyond the bound are
counted by netblock, and beyond that without a peer. Never raises.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

MAX_SOURCES = 200  # in one window, for all reasons
MAX_NETBLOCKS = 50
NETBLOCK_BITS = {4: 24, 6: 64}


class Refusals:
    """The refusals of one window: a number and the latest peer for each source and reason."""

    def __init__(self) -> None:
        # by the rest of the record, and the host, the netblock or nothing
        self._sources: dict[tuple[str, str], tuple[int, str]] = {}
        self._netblocks: dict[tuple[str, str], int] = {}
        self._others: dict[str, int] = {}

    def add(self, peer: str, about: str) -> None:
        """Count a refusal of a peer, HOST:PORT or the path of a unix socket; `about` is the rest of
        its record.
        """
        source = (about, peer.rpartition(":")[0] or peer)
        count, _ = self._sources.get(source, (0, ""))
        if count or len(self._sources) < MAX_SOURCES:
            self._sources[source] = (count + 1, peer)
            return
        netblock = (about, _netblock_of(source[1]))
        if netblock[1] and (netblock in self._netblocks or len(self._netblocks) < MAX_NETBLOCKS):
            self._netblocks[netblock] = self._netblocks.get(netblock, 0) + 1
        else:
            self._others[about] = self._others.get(about, 0) + 1

    def take(self) -> Iterator[tuple[str, str, int]]:
        """Yield the peer, the rest of its record and a number for each, and begin a new window.

        The peer is a netblock for several sources, and "" for those of unknown ones.
        """
        for (about, _), (count, peer) in self._sources.items():
            yield peer, about, count
        for (about, netblock), count in self._netblocks.items():
            yield netblock, about, count
        for about, count in self._others.items():
            yield "", about, count
        for counted in (self._sources, self._netblocks, self._others):
            counted.clear()


def _netblock_of(host: str) -> str:
    """Return the netblock of a numeric host; "" for another text."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return ""
    return str(ipaddress.ip_network((address, NETBLOCK_BITS[address.version]), strict=False))
