"""The workers of one configuration. A reload brings a new generation, and the old one drains.

Runs in the master. Never raises but NoRoom, where more workers are wanted than can be counted.
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
from superd.master.workers.listeners import Watch


@dataclass(eq=False)
class Place:
    """Where one worker of a pool belongs, and a row of the scoreboard."""

    number: int
    generation: Generation
    pool: Pool
    throttle: Throttle  # the pool's
    is_first: bool  # of its pool
    child: Child | None = None
    due: float | None = 0.0  # when to start the next worker


class Generation:
    """What one plan needs: places for workers, and the listeners that they serve."""

    def __init__(self, number: int, plan: Plan, watch: Watch) -> None:
        self.number = number
        self.since = time.time()
        self.plan = plan
        self.watch = watch
        self.places: list[Place] = []
        self.drains = False
        self.kill_at: float | None = None  # when those that still drain are ended, if ever

    def make_places(self, taken: Collection[int], most: int) -> None:
        """Make places for all workers of the plan; raises NoRoom beyond `most`."""
        free = (n for n in range(most) if n not in taken)
        for pool in self.plan.pools:
            throttle = Throttle()
            for number in range(pool.workers):
                place = next(free, None)
                if place is None:
                    raise NoRoom(
                        f"there is room for {most} workers, with those that drain: `superd"
                        " connections` shows for whom they do, reload-drain-timeout limits it,"
                        " and a restart makes more room"
                    )
                self.places.append(Place(place, self, pool, throttle, is_first=number == 0))

    @property
    def is_ready(self) -> bool:
        return all(place.child and place.child.ready for place in self.places)

    def retire(self, kill_at: float | None) -> None:
        """Have its workers drain, since others accept; none of them is replaced."""
        self.drains = True
        self.kill_at = kill_at
        for place in self.places:
            if place.child:
                # one that is not ready does not know the other signal yet, and ends
                place.child.signal(signal.SIGUSR1 if place.child.ready else signal.SIGTERM)
        self.places = [place for place in self.places if place.child]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of its workers."""
        for place in self.places:
            if place.child:
                place.child.signal(number)
