"""`superd try`: one plugin on 127.0.0.1, without a file and without root.

Runs in the command line, and becomes the master. The configuration is made of the arguments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli

from superd.cli.serve import announce
from superd.config.loading import check
from superd.config.model import Service
from superd.config.problems import Document
from superd.errors import SuperdError, UsageError
from superd.master.start import plan, serve
from superd.plugin.registry import installed

ARGUMENTS = "(command line)"


def attempt(plugin: str, settings: list[str]) -> int:
    """Serve `plugin` with options and keys of an entry given as KEY=VALUE."""
    data = {"service": {plugin: entry(plugin, settings)}, "daemon": {"drain-timeout": "2s"}}
    configuration = check(Document(ARGUMENTS, {}, data), Path.cwd() / ARGUMENTS)
    return serve(plan(configuration), in_background=False, ready=announce)


def entry(plugin: str, settings: list[str]) -> dict[str, Any]:
    """Return a service entry: a known key goes into it, any other is an option of the plugin."""
    keys = {field.alias for field in Service.model_fields.values()}
    made: dict[str, Any] = {"plugin": plugin, "options": {}}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise UsageError(f"expected KEY=VALUE, found {setting!r}")
        target = made if key in keys - {"options", "plugin"} else made["options"]
        target[key] = toml_value(text)
    if "listen" not in made:
        made["listen"] = _free_ports(plugin)
    return made


def toml_value(text: str) -> Any:
    """Return a value as TOML has it; what is not TOML is a string."""
    try:
        return tomli.loads(f"value = {text}")["value"]
    except tomli.TOMLDecodeError:
        return text


def _free_ports(plugin: str) -> list[str]:
    try:
        kinds = installed()[plugin].kinds
    except KeyError:
        raise SuperdError(f'there is no plugin "{plugin}"; `superd plugins` lists them') from None
    listen = ["tcp://127.0.0.1:0"] if "stream" in kinds or not kinds else []
    return listen + (["udp://127.0.0.1:0"] if "datagram" in kinds else [])
