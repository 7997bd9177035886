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

from superd.errors import printable

# inetd and xinetd answer these themselves, where an entry says so
INTERNAL = ("echo", "discard", "chargen", "daytime", "time", "tcpmux")

# what inetd and xinetd run has this file mode creation mask; superd's own default is narrower
UMASK = "022"

OWN_GREETING = "?greeting=service"  # of a tcpmux address: the program says "+" and more by itself
NOWAIT = "without wait the program must take its datagram at once"
NO_REFLECTION = (
    "over udp superd answers no ports below 1024 and never with more bytes than it was asked with;"
    " see amplify and reflection-guard"
)


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
    """One service, with its keys in the order in which they are written.

    What superd would refuse is written as a comment.
    """

    name: str
    file: str
    line: int
    keys: dict[str, Any] = field(default_factory=dict)
    is_comment: bool = False

    @property
    def is_served(self) -> bool:
        return not self.is_comment and bool(self.keys.get("enabled", True))

    def text(self, name: str) -> str:
        lines = [f"[service.{_key(name)}]"]
        lines += [f"{_key(key)} = {_value(value)}" for key, value in self.keys.items()]
        prefix = "# " if self.is_comment else ""
        origin = printable(f"# {self.file}:{self.line}")
        return "\n".join([origin, *(prefix + line for line in lines)]) + "\n"

    def left_out(self, why: str) -> Note:
        """Make this a comment; return a note that says why."""
        self.is_comment = True
        return Note(self.file, self.line, f"left out, and written as a comment: {why}")


def as_toml(entries: Iterable[Entry]) -> str:
    """Return a configuration; names that are there twice get a number."""
    entries = list(entries)
    names: dict[str, Entry] = {}
    for entry in sorted(entries, key=lambda entry: entry.is_comment):
        name, number = entry.name, 1
        while name in names:
            number += 1
            name = f"{entry.name}-{number}"
        names[name] = entry
    of = {id(entry): name for name, entry in names.items()}
    return "\n".join(entry.text(of[id(entry)]) for entry in entries)


def service_name(text: str) -> str:
    """Return a name that superd takes."""
    name = re.sub(r"[^A-Za-z0-9_.+-]", "-", text).lstrip("_.+-")[:58]
    return name or "service"


def legible(text: str) -> str:
    """Return text that was read with surrogateescape as something that can be printed."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else _string(text)


def _string(text: str) -> str:
    # TOML has neither JSON's pairs of surrogates nor a bare DEL
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, dict):
        pairs = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return _string(value) if isinstance(value, str) else json.dumps(value)
