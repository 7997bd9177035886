"""`superd plugins`: lists the installed plugins, or shows one with its options.

Runs in the command line. The list imports no plugin; showing one imports it in a child process.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from superd.cli.files import configuration_file
from superd.config.loading import load
from superd.config.schema import schema_of
from superd.config.values import did_you_mean
from superd.errors import ConfigurationError, ExitCode, SuperdError, shown
from superd.master.plan.preflight import blamed
from superd.plugin.methods import kinds_of, models_of
from superd.plugin.registry import Plugin, installed
from superd.plugin.registry import load as load_plugin
from superd.process.isolated import run_isolated


def plugins(file: Path | None, name: str | None, *, as_json: bool) -> int:
    """List all installed plugins, or show the one of this name."""
    if name:
        return show_plugin(name, as_json=as_json)
    return list_plugins(file, as_json=as_json)


def list_plugins(file: Path | None, *, as_json: bool) -> int:
    """Print all installed plugins."""
    used = _uses(file)
    found = [one for first in installed().values() for one in (first, *first.rivals)]
    if as_json:
        print(json.dumps([_row(plugin, used.get(plugin.name, [])) for plugin in found], indent=2))
        return int(ExitCode.OK)
    rows = [["NAME", "DISTRIBUTION", "VERSION", "KIND", "USED BY"]]
    for plugin in found:
        kinds, uses = ", ".join(plugin.kinds) or "?", ", ".join(used.get(plugin.name, [])) or "-"
        rows.append([plugin.name, plugin.distribution, plugin.version, kinds, uses])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip())
    return int(ExitCode.OK)


def _row(plugin: Plugin, used_by: list[str]) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "module": plugin.entry_point.value,
        "kinds": list(plugin.kinds),
        "used-by": used_by,
    }


def _uses(file: Path | None) -> dict[str, list[str]]:
    """Return the services that name each plugin; none where there is no valid configuration."""
    try:
        services = load(configuration_file(file)).settings.services
    except ConfigurationError:
        if file is not None:
            raise
        return {}
    found: dict[str, list[str]] = {}
    for name, entry in services.items():
        found.setdefault(entry.plugin, []).append(name)
    return found


def show_plugin(name: str, *, as_json: bool) -> int:
    """Print the manual of a plugin, its options, and an entry to start from."""
    known = installed()
    if name not in known:
        raise SuperdError(f"there is no plugin {shown(name)}{did_you_mean(name, list(known))}")
    outcome = run_isolated({name: lambda: describe(known[name])})[name]
    if outcome.failure:
        raise SuperdError(blamed(name, outcome.failure))
    print(json.dumps(outcome.result, indent=2) if as_json else "\n".join(_lines(outcome.result)))
    return int(ExitCode.OK)


def describe(plugin: Plugin) -> dict[str, Any]:
    """Return everything known about a plugin; imports it."""
    kind = load_plugin(plugin)
    schema = schema_of(kind.options_model)
    definitions, required = schema.get("$defs", {}), schema.get("required", [])
    options = {
        key: _resolved(option, definitions) for key, option in schema.get("properties", {}).items()
    }
    kinds = kinds_of(kind)
    transports = [t for t, k in (("tcp", "stream"), ("udp", "datagram")) if k in kinds]
    listen = ", ".join(f'"{transport}://127.0.0.1:7000"' for transport in transports)
    sample = [f"[service.{plugin.name}]", f'plugin = "{plugin.name}"', f"listen = [{listen}]"]
    if required:
        pairs = ", ".join(f"{key} = {_example(options[key])}" for key in required)
        sample.append(f"options = {{ {pairs} }}")
    for key, option in list(options.items()):
        options |= {f"{key}.{k}": inner for k, inner in _table(option, definitions).items()}
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "module": plugin.entry_point.value,
        "kinds": list(kinds),
        "models": list(models_of(kind)),
        "manual": inspect.cleandoc(kind.__doc__ or ""),
        "options": options,
        "required": required,
        "sample": sample,
    }


def _resolved(option: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return an option with its reference, if it has one, resolved."""
    name = option.get("$ref", "").rpartition("/")[2]
    return {**definitions.get(name, {}), **{k: v for k, v in option.items() if k != "$ref"}}


def _table(option: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of an option that is a table."""
    shapes = [_resolved(shape, definitions) for shape in option.get("anyOf", [option])]
    found: dict[str, Any] = next((s["properties"] for s in shapes if "properties" in s), {})
    return found


def _example(option: dict[str, Any]) -> str:
    """Return a value that the option may have: its author's example, if there is one."""
    one: dict[str, Any] = {**option, **option.get("anyOf", [{}])[0]}
    for key in ("examples", "enum"):
        if key in one:
            return json.dumps(one[key][0])
    empty = {"integer": 0, "number": 0, "boolean": True, "array": [], "object": {}}
    return json.dumps(one.get("minimum", empty.get(one.get("type", ""), "...")))


def _lines(about: dict[str, Any]) -> list[str]:
    lines = [
        f"{about['name']}, of {about['distribution']} {about['version']} ({about['module']})",
        f"serves {' and '.join(about['kinds'])} addresses",
        *([f"model is {' or '.join(about['models'])}"] if about["models"] != ["loop"] else []),
        *([""] if about["manual"] else []),
        *about["manual"].splitlines(),
        "",
        "Options:" if about["options"] else "Options: none",
    ]
    for name, option in about["options"].items():
        facts = [_type(option)]
        if name in about["required"]:
            facts.append("required")
        elif "default" in option:
            facts.append(f"default {json.dumps(option['default'])}")
        lines.append(f"  {name} ({', '.join(facts)})  {option.get('description', '')}".rstrip())
    return [*lines, "", *about["sample"]]


def _type(option: dict[str, Any]) -> str:
    """Return the types that an option takes, in TOML's words."""
    words = {"object": "table", "number": "float"}
    kinds = [kind["type"] for kind in option.get("anyOf", [option]) if "type" in kind]
    return " or ".join(dict.fromkeys(words.get(kind, kind) for kind in kinds)) or "any"
