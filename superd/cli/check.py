"""`superd check` and `superd schema`: a configuration and what it may say, without serving.

Runs in the command line, as any user; plugins run in processes that are thrown away.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from superd.cli.files import configuration_file
from superd.config.loading import load
from superd.config.model import Daemon, Service
from superd.errors import ConfigurationError, ExitCode, Problem, SuperdError
from superd.master.isolated import run_isolated
from superd.master.rehearsal import rehearse
from superd.plugin.registry import Plugin, installed
from superd.plugin.registry import load as load_plugin

OK = "configuration OK"


def check(files: Sequence[Path]) -> int:
    """Check each file and raise all problems of all of them at once."""
    problems: list[Problem] = []
    plugins = installed()
    for file in files or [configuration_file(None)]:
        try:
            configuration = load(file)
        except ConfigurationError as error:
            problems += error.problems
            continue
        verdict = rehearse(configuration, plugins, prepare=False)
        problems += verdict.problems
        problems += [configuration.problem(n, ("plugin",), w) for n, w in verdict.broken.items()]
    if problems:
        raise ConfigurationError(problems)
    print(OK)
    return int(ExitCode.OK)


def schema() -> int:
    """Print the JSON Schema of a configuration, with the options of every installed plugin."""
    print(json.dumps(configuration_schema(installed()), indent=2))
    return int(ExitCode.OK)


def configuration_schema(plugins: dict[str, Plugin]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a whole file."""
    definitions: dict[str, Any] = {}

    def described(model: type[Daemon] | type[Service]) -> dict[str, Any]:
        whole = model.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(whole.pop("$defs", {}))
        return whole

    service = described(Service)
    defaults = {**service, "required": [], "title": "Defaults", "description": "of every service"}
    outcomes = run_isolated({name: _Options(plugin) for name, plugin in plugins.items()})
    service["allOf"] = [
        {
            "if": {"properties": {"plugin": {"const": name}}},
            "then": {"properties": {"options": outcome.result}},
        }
        for name, outcome in outcomes.items()
        if not outcome.failure
    ]
    service["required"] = ["plugin"]  # `listen` may stand under [defaults]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "superd configuration",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "daemon": described(Daemon),
            "defaults": defaults,
            "service": {"type": "object", "additionalProperties": service},
        },
        "$defs": definitions,
    }


class _Options:
    """What runs in the child: the schema of one plugin's options."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin

    def __call__(self) -> dict[str, Any]:
        try:
            return load_plugin(self.plugin).options_model.model_json_schema()
        except SuperdError as error:
            raise RuntimeError(str(error)) from None
