"""The service entries that a migration produces, as TOML, and its notes to the operator.

Runs in the command line. A part of the original configuration without an equivalent becomes a note
with its file and line; nothing is dropped without one. Never raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from superd.errors import printable

# the internal services of inetd and xinetd that superd has as plugins
INTERNAL = ("echo", "discard", "chargen", "daytime", "time", "tcpmux")

# of programs that inetd and xinetd start; superd's own default is stricter
DEFAULT_UMASK = "022"

OWN_GREETING = "?greeting=service"  # of a tcpmux address: the program sends its "+" line itself
NOWAIT_NOTE = "without wait the program must read its datagram at once"
WAIT_LIMIT_NOTE = "with wait each socket has one program"
REFLECTION_NOTE = (
    "over udp superd answers no ports below 1024, and never with more bytes than the request has;"
    " see amplify and reflection-guard"
)


@dataclass(frozen=True)
class Note:
    """A line of the original configuration without an exact equivalent in superd."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass
class Entry:
    """One service; `keys` are in the order of the TOML. It is a comment if superd rejects it."""

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
        """Turn this entry into a comment; return a note with the reason."""
        self.is_comment = True
        return Note(self.file, self.line, f"left out, and written as a comment: {why}")


def as_toml(entries: Iterable[Entry]) -> str:
    """Return a configuration; a repeated name gets a number."""
    entries = list(entries)
    names: dict[str, Entry] = {}
    for entry in sorted(entries, key=lambda entry: entry.is_comment):
        name, number = entry.name, 1
        while name in names:
            number += 1
            name = f"{entry.name}-{number}"
        names[name] = entry
    name_of = {id(entry): name for name, entry in names.items()}
    return "\n".join(entry.text(name_of[id(entry)]) for entry in entries)


def service_name(text: str) -> str:
    """Return a name that superd accepts, as near to the text as possible."""
    name = re.sub(r"[^A-Za-z0-9_.+-]", "-", text).lstrip("_.+-")[:58]
    return name or "service"


def legible(text: str) -> str:
    """Return text from surrogateescape with `\\x..` for each byte that is not UTF-8."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def lines_left_out(first: int, last: int, why: str) -> str:
    """Return the text of a note at line `first` on the lines from there to `last`."""
    until = f", with the lines up to {last}" if last > first else ""
    return f"left out{until}: {why}"


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else _string(text)


def _string(text: str) -> str:
    # unlike JSON, TOML has no surrogate pairs, and a DEL must be escaped
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, dict):
        pairs = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return _string(value) if isinstance(value, str) else json.dumps(value)
