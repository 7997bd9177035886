"""Takes back the listeners that programs and plugins of a retired generation have (`wait = true`),
where their entries are gone or changed.

Runs in the master, at the end of a reload. Workers end the programs that they have started; then
the master ends those that a program has left. Pending connections stay in the backlog of the
listener, for the next generation. Raises nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

from superd.config.model import Service
from superd.master.context import Context
from superd.master.plan.pools import Pool
from superd.master.workers.generation import Generation
from superd.master.workers.queries import ReleaseQuery

TIMEOUT = 3.0  # seconds; a worker ends a program within one
SERVICES_PER_QUERY = 500  # a message has room for their names


class Release:
    """The release of a reload from `old` to `new`, which begins at once. `changes` says by service
    what has changed.
    """

    def __init__(
        self, context: Context, old: Generation, new: Generation, changes: Mapping[str, str]
    ) -> None:
        self._context = context
        self._retired = [slot for slot in context.slots if slot.generation is not new]
        self._deadline = time.monotonic() + TIMEOUT
        self._pending: set[ReleaseQuery] = set()
        self._listeners: list[tuple[Pool, set[int]]] = []  # with the inodes of their sockets
        for pool in old.plan.pools:
            names = [
                name
                for name, entry in pool.services.items()
                if changes.get(name) in ("removed", "changed") and _may_hand_off(entry)
            ]
            if names:
                self._listeners.append((pool, old.listeners.inodes(frozenset(names))))
            for first in range(0, len(names), SERVICES_PER_QUERY):
                self._begin(names[first : first + SERVICES_PER_QUERY])

    def _begin(self, services: list[str]) -> None:
        query = ReleaseQuery(self._retired, services)
        self._pending.add(query)
        query.begin(partial(self._answered, query))

    def _answered(self, query: ReleaseQuery, _: bytes) -> None:
        self._pending.discard(query)
        for child in query.unanswered:
            self._context.log.warning(f"worker {child.pid} has not released its listeners in time")

    def is_over(self, now: float) -> bool:
        """Take the next step, and return whether it was the last."""
        if now >= self._deadline:
            for query in list(self._pending):
                query.reply_now()
        if self._pending:
            return False
        orphans = self._context.orphans
        for pool, inodes in self._listeners:
            orphans.end_holders(inodes, self._context.processes, pool.confinement)
        self._listeners = []
        return not orphans.are_ending or now >= self._deadline


def _may_hand_off(entry: Service) -> bool:
    """Return whether a plugin may get a socket of a service itself."""
    return entry.wait or any(address.transport.is_datagram for address in entry.listen)
