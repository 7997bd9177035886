"""The new program's half of an upgrade: it takes up what the one before it had, and reloads.

Runs in the master. Raises SuperdError where it cannot; a trial has found that out before.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superd import __version__
from superd.admission.tally import Tally
from superd.config.loading import load_again
from superd.config.model import Confinement, Service
from superd.listen.listeners import Listener
from superd.master.change.upgrade.state import State, address_of
from superd.master.logs.log import Log
from superd.master.plan.plan import Plan, plan_of
from superd.master.plan.pools import Pool
from superd.master.resolver import Resolving
from superd.master.workers.child import Child, Throttle
from superd.master.workers.generation import Generation, Place
from superd.master.workers.listeners import Watch
from superd.plugin.registry import installed

if TYPE_CHECKING:
    from superd.master.master import Master


class Upgraded:
    """What became of an upgrade, told by the program that came of it: how its reload goes."""

    def __init__(self, master: Master, number: int, before: str) -> None:
        self.number = number
        self._before = before
        self._reload = master.changes.reload()

    @property
    def is_over(self) -> bool:
        return self._reload.is_over

    def report(self) -> dict[str, Any]:
        """Return how it goes as JSON, with the keys of a reload's report."""
        return {**self._reload.report(), "before": self._before, "version": __version__}

    def keep_time(self, now: float) -> None:
        """The reload keeps its own time."""

    def abandon(self) -> None:
        """The reload is abandoned by itself."""


def plan_in_force(state: State) -> Plan:
    """Return the plan that the old workers serve by, whatever the files say now."""
    settings = load_again(Path(state["file"]), state["texts"], state["overrides"]).partial
    files = {key: path and Path(path) for key, path in state["runtime files"].items()}
    daemon = settings.daemon.model_copy(update=files)
    settings = settings.model_copy(update={"daemon": daemon})
    return plan_of(settings, installed(), state["broken"], state["looking up"])


def listeners_of(state: State, services: Mapping[str, Service]) -> list[Listener]:
    """Return the listeners, each with the entry that it was made for."""
    return [listener_of(passed, services) for passed in state["listeners"]]


def listener_of(passed: State, services: Mapping[str, Service]) -> Listener:
    """Return one listener; where its socket was lost, with one that is closed."""
    asked = address_of(passed["asked"])
    unknown = Service.model_construct(plugin="(unknown)", listen=(asked,))
    file = passed["file"]
    return Listener(
        passed["service"],
        services.get(passed["service"], unknown),
        asked,
        address_of(passed["address"]),
        _socket(passed["socket"]),
        shares_port=passed["shares port"],
        file=None if file is None else (file[0], file[1]),
        entrance=None if passed["entrance"] is None else _socket(passed["entrance"]),
        backlog=passed["backlog"],
        is_given=passed["is given"],
    )


def _socket(descriptor: int | None) -> socket.socket:
    if descriptor is not None:
        return socket.socket(fileno=descriptor)
    lost = socket.socket()
    lost.close()
    return lost


def tally_of(state: State, plan: Plan, log: Log) -> Tally:
    """Go on counting where the other program was; anew where it counts in another way."""
    try:
        return Tally.taken_up(state["tally"])
    except ValueError as error:
        log.warning(f"limits and counters start anew: {error}")
        taken = max((passed["number"] + 1 for passed in state["places"]), default=0)
        return Tally.of(list(plan.services), max(plan.workers, taken))


def resolver_of(state: State, log: Log) -> Resolving | None:
    """Return a resolver at the old one's address, for which workers go on asking."""
    if state["resolver"] is None:
        return None
    return Resolving(log, _socket(state["resolver"]))


def generations_of(state: State, plan: Plan, watch: Watch) -> list[Generation]:
    """Return all generations with their places, the current one last: one that a failed reload
    has left, and that is not gone yet, has a higher number.
    """
    current = state["generation"]
    older = {passed["generation"] for passed in state["places"]} - {current}
    numbers = [*sorted(older), current]
    generations = {number: Generation(number, plan, watch) for number in numbers}
    pools = {pool.name: pool for pool in plan.pools}
    throttles = {name: Throttle() for name in pools}
    for passed in state["places"]:
        generation, name = generations[passed["generation"]], passed["pool"]
        gone = Pool(name, Confinement(), {}, 0)  # of a generation that drains
        child = None if passed["child"] is None else _child(passed["child"])
        place = Place(
            passed["number"],
            generation,
            pools.get(name, gone),
            throttles.get(name, Throttle()),
            passed["is first"],
            child,
            due=0.0 if child is None else None,
        )
        generation.drains, generation.kill_at = passed["drains"], passed["kill at"]
        generation.places.append(place)
    return [generations[number] for number in numbers]


def _child(passed: State) -> Child:
    return Child(
        passed["pid"],
        _socket(passed["channel"]),
        passed["started"],
        frozenset(passed["services"]),
        ready=passed["ready"],
        rows=passed["rows"],
    )


def readers_of(state: State) -> dict[int, int]:
    """Return the master's ends of the lifelines of all workers, by pid."""
    children = [passed["child"] for passed in state["places"] if passed["child"] is not None]
    return {child["pid"]: child["lifeline"] for child in children}
