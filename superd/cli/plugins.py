"""`superd plugins`: what is installed, where it is used, what one of them takes.

Runs in the command line. The list imports no plugin; showing one imports it in a process that is
thrown away.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from superd.cli.files import configuration_file
from superd.config.loading import load
from superd.config.values import did_you_mean
from superd.errors import ConfigurationError, ExitCode, SuperdError
from superd.master.isolated import run_isolated
from superd.plugin.registry import Plugin, installed
from superd.plugin.registry import load as load_plugin
from superd.plugin.service import kinds_of


def list_plugins(file: Path | None, *, as_json: bool) -> int:
    """Print all installed plugins."""
    used = _uses(file)
    plugins = installed().values()
    if as_json:
        print(json.dumps([_row(plugin, used.get(plugin.name, [])) for plugin in plugins], indent=2))
        return int(ExitCode.OK)
    lines = [["NAME", "DISTRIBUTION", "VERSION", "KIND", "USED BY"]]
    for plugin in plugins:
        kinds, uses = ", ".join(plugin.kinds) or "?", ", ".join(used.get(plugin.name, [])) or "-"
        lines.append([plugin.name, plugin.distribution, plugin.version, kinds, uses])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip())
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
    """Print what a plugin does, its options, and an entry to start from."""
    plugins = installed()
    if name not in plugins:
        raise SuperdError(f'there is no plugin "{name}"{did_you_mean(name, list(plugins))}')
    outcome = run_isolated({name: lambda: describe(plugins[name])})[name]
    if outcome.failure:
        raise SuperdError(f"plugin {name}: {outcome.failure}")
    print(json.dumps(outcome.result, indent=2) if as_json else "\n".join(_lines(outcome.result)))
    return int(ExitCode.OK)


def describe(plugin: Plugin) -> dict[str, Any]:
    """Return all that is known of a plugin; imports it."""
    kind = load_plugin(plugin)
    schema = kind.options_model.model_json_schema()
    kinds = kinds_of(kind)
    transports = [t for t, k in (("tcp", "stream"), ("udp", "datagram")) if k in kinds]
    listen = ", ".join(f'"{transport}://127.0.0.1:7000"' for transport in transports)
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "module": plugin.entry_point.value,
        "kinds": list(kinds),
        "manual": inspect.getdoc(kind) or "",
        "options": schema.get("properties", {}),
        "required": schema.get("required", []),
        "sample": [f"[service.{plugin.name}]", f'plugin = "{plugin.name}"', f"listen = [{listen}]"],
    }


def _lines(told: dict[str, Any]) -> list[str]:
    lines = [
        f"{told['name']}, of {told['distribution']} {told['version']} ({told['module']})",
        f"serves {' and '.join(told['kinds'])} addresses",
        "",
        *told["manual"].splitlines(),
        "",
        "Options:" if told["options"] else "Options: none",
    ]
    for name, option in told["options"].items():
        default = (
            "required"
            if name in told["required"]
            else f"default {json.dumps(option.get('default'))}"
        )
        lines.append(f"  {name} ({_type(option)}, {default})  {option.get('description', '')}")
    return [*lines, "", *told["sample"]]


def _type(option: dict[str, Any]) -> str:
    kinds = option.get("anyOf", [option])
    return " or ".join(kind.get("type", "any") for kind in kinds if kind.get("type") != "null")
