"""Keeps bans in force for services whose program accepts its clients itself (`wait = true`): the
kernel drops the packets of banned sources.

Runs in the master, which has every listener. Raises nothing.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator, Sequence

from superd.errors import reason
from superd.listen.listener import Listener
from superd.listen.source_filter import SourceFilter, detach
from superd.master.bans import OPERATOR, Bans
from superd.master.logs.log import Log
from superd.master.workers.listeners import Listeners

WARNING_INTERVAL = 60.0  # seconds between two warnings that bans do not fit


class BanFilters:
    """The filters on the sockets of the listeners that `update` had last."""

    def __init__(self, bans: Bans, log: Log) -> None:
        self._bans = bans
        self._log = log
        self._done: tuple[Listeners, int, int] | None = None
        self._warn_at = 0.0

    def update(self, listeners: Listeners) -> None:
        """Bring the filters up to date if bans or sockets have changed."""
        wanted = (listeners, listeners.changes, self._bans.changes)
        if wanted == self._done:
            return
        have_sockets_changed = self._done is None or self._done[:2] != wanted[:2]
        self._done = wanted
        waiting = []
        for listener in _internet_listeners(listeners):
            if listener.entry.wait:
                waiting.append(listener)
            elif have_sockets_changed:  # another entry may have had the socket before
                detach(listener.socket)
        if waiting:
            self._attach_to(waiting)

    def _attach_to(self, listeners: Sequence[Listener]) -> None:
        bans = sorted(self._bans, key=lambda ban: (ban.by != OPERATOR, -ban.until))
        filter_ = SourceFilter([ban.network for ban in bans])
        for listener in listeners:
            try:
                filter_.attach(listener.socket)
            except OSError as error:
                self._log.error(
                    f"banned sources are not refused on {listener.address}: {reason(error)}",
                    listener.service,
                )
        if filter_.room < len(bans):
            services = dict.fromkeys(listener.service for listener in listeners)
            self._warn(filter_.room, len(bans), services)

    def _warn(self, room: int, number: int, services: Iterable[str]) -> None:
        now = time.monotonic()
        if now >= self._warn_at:
            self._warn_at = now + WARNING_INTERVAL
            text = f"of {number} bans, {room} fit into the filter of {', '.join(services)}"
            self._log.warning(f"{text}: operators' first, then those that end last")


def _internet_listeners(listeners: Listeners) -> Iterator[Listener]:
    for listener in listeners.all:
        is_internet = listener.address.family in (socket.AF_INET, socket.AF_INET6)
        if is_internet and listener.entrance is None and not listener.is_closed:
            yield listener
