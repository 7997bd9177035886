"""`superd schema`: prints the JSON Schema of a configuration, for editors.

Runs in the command line; plugins, which add their options, run in child processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from superd.config.model import Daemon, Defaults, Service
from superd.config.schema import schema_of
from superd.errors import ExitCode
from superd.plugin.registry import Plugin, installed, load
from superd.process.isolated import run_isolated

REQUIRED_KEYS = ("plugin", "listen")  # in a service entry or under [defaults]


def schema() -> int:
    """Print the JSON Schema of a configuration, with the options of every installed plugin."""
    print(json.dumps(configuration_schema(installed()), indent=2))
    return int(ExitCode.OK)


def configuration_schema(plugins: Mapping[str, Plugin]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a whole file."""
    definitions: dict[str, Any] = {}

    def described(whole: dict[str, Any]) -> dict[str, Any]:
        definitions.update(whole.pop("$defs", {}))
        return whole

    daemon, defaults, service = (described(schema_of(m)) for m in (Daemon, Defaults, Service))
    for table in (defaults, service):
        table["properties"]["plugin"]["enum"] = list(plugins)
    for key in REQUIRED_KEYS:
        del defaults["properties"][key]["default"]
    service["allOf"] = []
    for name, options in _options(plugins).items():
        names_it = {"properties": {"plugin": {"const": name}}, "required": ["plugin"]}
        its_own = {"properties": {"options": described(options)}}
        service["allOf"].append({"if": names_it, "then": its_own})
    del service["required"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "superd configuration",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "daemon": daemon,
            "defaults": defaults,
            "service": {"type": "object", "additionalProperties": service},
        },
        "allOf": [_required_somewhere(key) for key in REQUIRED_KEYS],
        "$defs": definitions,
    }


def _required_somewhere(key: str) -> dict[str, Any]:
    """Return the rule that a key is required in each service unless [defaults] has it."""
    in_defaults = {"properties": {"defaults": {"required": [key]}}, "required": ["defaults"]}
    in_each = {"properties": {"service": {"additionalProperties": {"required": [key]}}}}
    return {"if": in_defaults, "else": in_each}


def _options(plugins: Mapping[str, Plugin]) -> dict[str, Any]:
    """Return the schema of each plugin's options, without plugins that do not work."""
    outcomes = run_isolated({name: partial(_schema_of, plugins[name]) for name in plugins})
    return {name: outcome.result for name, outcome in outcomes.items() if not outcome.failure}


def _schema_of(plugin: Plugin) -> dict[str, Any]:
    return schema_of(load(plugin).options_model, prefix=f"{plugin.name}.")
