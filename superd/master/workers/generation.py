"""The workers of one configuration. A reload makes a new generation, and the old one drains.

Runs in the master. Raises only NoRoom, if the plan wants more workers than the scoreboard has rows.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Collection
from dataclasses import dataclass

from superd.admission.scoreboard import NoRoom
from superd.master.plan.plan import Plan
from superd.master.plan.pools import Pool
from superd.master.workers.child import Child, Throttle
from superd.master.workers.listeners import Listeners


@dataclass(eq=False)
class Slot:
    """A place for one worker of a pool. `number` is its row in the scoreboard."""

    number: int
    generation: Generation
    pool: Pool
    throttle: Throttle  # the pool's
    is_first: bool  # of its pool
    child: Child | None = None
    due: float | None = 0.0  # when to start the next worker, by the monotonic clock


class Generation:
    """What one plan needs: slots for workers, and the listeners that they serve.

    `failure`, exit code and text, says why one of its workers could not start; the reload that made
    the generation acts on it.
    """

    def __init__(self, number: int, plan: Plan, listeners: Listeners) -> None:
        self.number = number
        self.since = time.time()  # seconds since 1970
        self.plan = plan
        self.listeners = listeners
        self.slots: list[Slot] = []
        self.drains = False
        self.failure: tuple[int, str] | None = None
        self.kill_at: float | None = None  # when workers that still drain are killed, if ever

    def make_slots(self, taken: Collection[int], limit: int) -> None:
        """Make slots for all workers of the plan, with numbers below `limit` that are not `taken`;
        NoRoom if there are too few.
        """
        free = (n for n in range(limit) if n not in taken)
        for pool in self.plan.pools:
            throttle = Throttle()
            for index in range(pool.workers):
                number = next(free, None)
                if number is None:
                    raise NoRoom(
                        f"there is room for {limit} workers, including those that drain: `superd"
                        " connections` lists their clients, reload-drain-timeout limits how long"
                        " they drain, and a restart makes more room"
                    )
                self.slots.append(Slot(number, self, pool, throttle, is_first=index == 0))

    @property
    def is_ready(self) -> bool:
        return all(slot.child and slot.child.ready for slot in self.slots)

    def retire(self, kill_at: float | None) -> None:
        """Have its workers drain, since another generation accepts; none of them is replaced."""
        self.drains = True
        self.kill_at = kill_at
        self.plan.shorten()
        pools = {pool.name: pool for pool in self.plan.pools}
        for slot in self.slots:
            slot.pool = pools.get(slot.pool.name, slot.pool)
        for slot in self.slots:
            if slot.child:
                # a worker that is not ready does not handle USR1 yet, and ends
                slot.child.signal(signal.SIGUSR1 if slot.child.ready else signal.SIGTERM)
        self.slots = [slot for slot in self.slots if slot.child]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of its workers."""
        for slot in self.slots:
            if slot.child:
                slot.child.signal(number)
