"""`superd try`: serves one plugin on 127.0.0.1, without a file and without root.

Runs in the command line, and becomes the master. The arguments are the configuration.
Raises ConfigurationError, UsageError.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import tomli

from superd.cli.serve import announce
from superd.config.loading import check
from superd.config.model import Service
from superd.config.positions import Path as KeyPath
from superd.config.positions import find_places
from superd.config.problems import Document, dotted
from superd.config.values import listed
from superd.errors import ConfigurationError, Problem, UsageError, shown
from superd.listen.inherited import Inheritance
from superd.master.plan.plan import Plan, plan
from superd.master.signals import end_on_term
from superd.master.start import serve
from superd.plugin.registry import installed
from superd.process.forking import signals_blocked


def attempt(plugin: str, settings: list[str]) -> int:
    """Serve `plugin` with options and keys of an entry given as KEY=VALUE."""
    end_on_term()
    made = entry(plugin, settings)
    has_own_addresses = not any(setting.startswith("listen=") for setting in settings)
    with signals_blocked():
        found = _planned(plugin, made, made["listen"] if has_own_addresses else [])
    return serve(found, Inheritance(), in_background=False, ready=announce)


def _planned(plugin: str, made: dict[str, Any], addresses: list[str]) -> Plan:
    """Return the plan. Where the options do not suit all addresses, use one of them: a forward to
    tcp:// cannot take datagrams.
    """
    arguments = Arguments(plugin, made)
    try:
        return plan(check(arguments, Path.cwd() / arguments.name))
    except ConfigurationError:
        for address in addresses:
            with contextlib.suppress(ConfigurationError):
                return _planned(plugin, {**made, "listen": address}, [])
        raise


class Arguments(Document):
    """The command line as a configuration: a problem names the key as it was typed."""

    def __init__(self, plugin: str, made: dict[str, Any]) -> None:
        data = {
            "service": {plugin: made},
            "daemon": {"drain-timeout": "2s", "on-bind-failure": "stop"},
        }
        super().__init__(f"superd try {plugin}", "", find_places(""), data)

    def problem(self, path: KeyPath, message: str, *, at_key: bool = False) -> Problem:
        typed = path[2:] if path[2:3] != ("options",) else path[3:]
        return Problem(self.name, 0, 0, dotted(typed), message)


def entry(plugin: str, settings: list[str]) -> dict[str, Any]:
    """Return a service entry: known keys belong to it, all others to the options of the plugin. A
    key that is given several times has a list of these values.
    """
    keys = {field.alias for field in Service.model_fields.values()} - {"options", "plugin"}
    made: dict[str, Any] = {"plugin": plugin, "options": {}}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise UsageError(f"expected KEY=VALUE, found {shown(setting)}")
        table, value = made if key in keys else made["options"], toml_value(text)
        table[key] = [*listed(table[key]), *listed(value)] if key in table else value
    made.setdefault("listen", free_ports(plugin))
    return made


def toml_value(text: str) -> Any:
    """Return a value of TOML; text that is not one value is a string."""
    try:
        found = tomli.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return found["value"] if len(found) == 1 else text


def free_ports(plugin: str) -> list[str]:
    """Return an address for each kind that the plugin serves, as far as its source shows."""
    found = installed().get(plugin)
    kinds = found.kinds if found else ()
    listen = ["tcp://127.0.0.1:0"] if "stream" in kinds or not kinds else []
    return listen + (["udp://127.0.0.1:0"] if "datagram" in kinds else [])
