"""What the new program of an upgrade makes of the state that it takes over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from superd.admission.scoreboard import MIN_WORKER_SLOTS
from superd.admission.tally import Tally
from superd.config.model import Daemon, Settings
from superd.master.change.upgrade.take_over import generations_of, tally_of
from superd.master.logs.log import Log
from superd.master.plan.plan import Plan
from superd.master.workers.listeners import Listeners


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log([str(tmp_path / "log")], "text")


@pytest.fixture
def plan() -> Plan:
    settings = Settings(file=Path("/superd.toml"), texts={}, daemon=Daemon(), services={})
    return Plan(settings, [], {}, {}, needs_resolver=False, looking_up=[])


def place(number: int, generation: int, *, drains: bool = False) -> dict[str, Any]:
    passed = {"number": number, "generation": generation, "drains": drains, "kill at": None}
    return {**passed, "pool": "nobody", "is first": True, "child": None}


def test_new_counters_have_room_for_the_old_workers(log: Log, plan: Plan) -> None:
    highest = MIN_WORKER_SLOTS + 8
    before = Tally.of(["echo"], highest)
    passed = before.as_state()
    state = {"tally": {**passed, "layout": ["another"]}, "places": [place(3, 1), place(highest, 1)]}
    tally = tally_of(state, plan, log)
    assert tally.scoreboard.memory.descriptor != passed["scoreboard"]
    tally.scoreboard.vacate(highest)
    tally.ledger.vacate(highest)


def test_the_generation_of_a_failed_reload_is_not_the_current_one(log: Log, plan: Plan) -> None:
    places = [place(0, 1, drains=True), place(1, 2), place(2, 3, drains=True)]
    state = {"generation": 2, "places": places}
    scoreboard = Tally.of(["echo"], 3).scoreboard
    generations = generations_of(state, plan, Listeners([], log), scoreboard)
    assert [(one.number, one.drains) for one in generations] == [(1, True), (3, True), (2, False)]
