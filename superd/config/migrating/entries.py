"""Service entries that were made of another program's configuration, and what is to be known of it.

Runs in the command line. Writes TOML, and never drops anything in silence: what has no equivalent
becomes a note with its file and line. Never raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

# inetd and xinetd answer these themselves, where an entry says so
INTERNAL = ("echo", "discard", "chargen", "daytime", "time")


@dataclass(frozen=True)
class Note:
    """Something that has no exact equivalent, or behaves differently."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass
class Entry:
    """One service, with its keys in the order in which they are written."""

    name: str
    origin: str  # FILE:LINE
    keys: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        lines = [f"# {self.origin}", f"[service.{_key(self.name)}]"]
        lines += [f"{_key(key)} = {_value(value)}" for key, value in self.keys.items()]
        return "\n".join(lines) + "\n"


def as_toml(entries: Iterable[Entry]) -> str:
    """Return a configuration; names that are there twice get a number."""
    seen: dict[str, int] = {}
    parts = []
    for entry in entries:
        seen[entry.name] = seen.get(entry.name, 0) + 1
        if seen[entry.name] > 1:
            entry.name = f"{entry.name}-{seen[entry.name]}"
        parts.append(entry.text)
    return "\n".join(parts)


def service_name(text: str) -> str:
    """Return a name that superd takes."""
    name = re.sub(r"[^A-Za-z0-9_.+-]", "-", text).lstrip("_.+-")[:60]
    return name or "service"


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else json.dumps(text)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        pairs = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)  # strings, numbers and booleans are written alike
