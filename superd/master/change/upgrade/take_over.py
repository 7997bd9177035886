"""The new program's half of an upgrade: it takes over the state of the program before, and reloads.

Runs in the master. Raises SuperdError if it cannot, which a trial has ruled out before.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from superd import __version__
from superd.admission.scoreboard import Scoreboard
from superd.admission.tally import Tally
from superd.config.loading import load_again
from superd.config.model import Confinement, Service
from superd.listen.listener import Listener
from superd.master.change.reload import Reload
from superd.master.change.upgrade.state import State, address_of, failure_of
from superd.master.logs.log import Log
from superd.master.plan.plan import Plan, plan_of
from superd.master.plan.pools import Pool
from superd.master.resolver import Resolver
from superd.master.workers.child import Child, Throttle
from superd.master.workers.generation import Generation, Slot
from superd.master.workers.listeners import Listeners
from superd.master.workers.output import Output
from superd.plugin.registry import installed
from superd.worker.channel import AppendedFile
from superd.worker.lifeline import Lifeline


class Upgraded:
    """The last step of an upgrade, as the new program reports it: its reload."""

    def __init__(self, reload: Reload, number: int, before: str) -> None:
        self.number = number
        self._before = before
        self._reload = reload

    @property
    def state(self) -> str:
        return self._reload.state

    @property
    def problems(self) -> list[str]:
        return self._reload.problems

    @property
    def process(self) -> int | None:
        return self._reload.process

    @property
    def is_over(self) -> bool:
        return self._reload.is_over

    def report(self) -> dict[str, Any]:
        """Return its progress as JSON, with the keys of a reload's report."""
        return {**self._reload.report(), "before": self._before, "version": __version__}

    def tick(self, now: float) -> None:
        """Do nothing: the master calls the reload itself."""

    def abandon(self) -> None:
        """Do nothing: the reload is abandoned by itself."""


def plan_in_force(state: State) -> Plan:
    """Return the plan of the old workers, whatever the files say now."""
    settings = load_again(Path(state["file"]), state["texts"], state["overrides"]).partial
    files = {key: path and Path(path) for key, path in state["runtime files"].items()}
    daemon = settings.daemon.model_copy(update=files)
    settings = settings.model_copy(update={"daemon": daemon})
    return plan_of(settings, installed(), state["broken"], state["looking up"])


def listeners_of(state: State, services: Mapping[str, Service]) -> list[Listener]:
    """Return the listeners, each with the service entry that it was made for."""
    return [listener_of(passed, services) for passed in state["listeners"]]


def listener_of(passed: State, services: Mapping[str, Service]) -> Listener:
    """Return one listener; one that is lost or pending has a closed socket."""
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
        is_external=passed["is given"],
        failure=failure_of(passed["failure"]) if passed.get("failure") else None,
    )


def _socket(descriptor: int | None) -> socket.socket:
    if descriptor is not None:
        return socket.socket(fileno=descriptor)
    lost = socket.socket()
    lost.close()
    return lost


def tally_of(state: State, plan: Plan, log: Log) -> Tally:
    """Return the counters of the program before, or new ones if their layout has changed."""
    try:
        return Tally.of_state(state["tally"])
    except ValueError as error:
        log.warning(f"limits and counters start from zero: {error}")
        taken = max((passed["number"] + 1 for passed in state["places"]), default=0)
        return Tally.of(list(plan.services), max(plan.workers, taken))


def resolver_of(state: State, log: Log) -> Resolver | None:
    """Return a resolver at the address that the old workers use."""
    if state["resolver"] is None:
        return None
    return Resolver(log, _socket(state["resolver"]))


def generations_of(
    state: State, plan: Plan, listeners: Listeners, scoreboard: Scoreboard
) -> list[Generation]:
    """Return all generations with their slots, the current one last. A generation of a failed
    reload, whose workers have not ended yet, has a higher number than the current one.
    """
    current = state["generation"]
    older = {passed["generation"] for passed in state["places"]} - {current}
    numbers = [*sorted(older), current]
    generations = {number: Generation(number, plan, listeners) for number in numbers}
    pools = {pool.name: pool for pool in plan.pools}
    throttles = {name: Throttle() for name in pools}
    for passed in state["places"]:
        generation, name = generations[passed["generation"]], passed["pool"]
        removed = Pool(name, Confinement(), {}, 0)  # of a generation that drains
        slot = Slot(
            passed["number"],
            generation,
            pools.get(name, removed),
            throttles.get(name, Throttle()),
            passed["is first"],
        )
        if passed["child"] is not None:
            slot.child, slot.due = _child(passed["child"], scoreboard.due(slot.number)), None
        generation.drains, generation.kill_at = passed["drains"], passed["kill at"]
        generation.slots.append(slot)
    return [generations[number] for number in numbers]


def _child(passed: State, due: memoryview) -> Child:
    return Child(
        passed["pid"],
        _socket(passed["channel"]),
        Lifeline(due, passed["lifeline"]),
        passed["started"],
        frozenset(passed["services"]),
        ready=passed["ready"],
        rows=passed["rows"],
        output=None if passed.get("output") is None else Output(passed["output"]),
        is_confined=True,
        files=[AppendedFile(**file) for file in passed.get("files", ())],  # an older one has none
        files_since=passed.get("files since", 0.0),
    )
