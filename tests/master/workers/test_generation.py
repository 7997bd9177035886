"""A generation that drains: the master keeps what describes its workers, and nothing else."""

from __future__ import annotations

import weakref
from pathlib import Path

from superd.config.loading import load
from superd.master.logs.log import Log
from superd.master.plan.plan import plan_of
from superd.master.workers.generation import Generation
from superd.master.workers.listeners import Listeners

TOML = """
[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:7"
deny-file = "{directory}/list"
"""


def test_lists_of_a_generation_that_drains_are_freed(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("192.0.2.1\n")
    file = tmp_path / "superd.toml"
    file.write_text(TOML.format(directory=tmp_path))
    file.chmod(0o600)
    plan = plan_of(load(file).settings, {}, {})  # kept, as by the function that started superd
    [file_of_rules] = plan.services["echo"].deny_file
    rules = weakref.ref(file_of_rules)
    del file_of_rules
    generation = Generation(1, plan, Listeners([], Log([], "text")))
    generation.make_slots((), 100)
    assert rules() is not None
    generation.retire(None)
    assert rules() is None
    assert plan.services.keys() == plan.settings.services.keys() == {"echo"}
