"""Where each key and value of a TOML document stands.

Runs wherever a configuration is read, before the real parser. Tells lines and columns, which
tomli does not, and bounds how deep a document may nest; it judges nothing else, and stops without
a word at text that is not TOML. Raises `TooDeep`.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass

Path = tuple[str | int, ...]

DEEPEST = 8  # tables and arrays within each other, or parts of a dotted key


class TooDeep(ValueError):
    """The document nests deeper than any configuration needs."""

    def __init__(self, position: Position) -> None:
        self.position = position
        super().__init__(f"nested more than {DEEPEST} deep")


@dataclass(frozen=True)
class Position:
    """A line and a column, both from 1, the column in characters."""

    line: int
    column: int


@dataclass(frozen=True)
class Place:
    """Where a key stands, and where its value starts."""

    key: Position
    value: Position


_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY_PART = re.compile(
    r"""(?P<bare>[A-Za-z0-9_-]+)|"(?P<basic>(?:[^"\\\n]|\\.)*)"|'(?P<literal>[^'\n]*)'"""
)
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^\s,\]}#=\[{\"']+(?: [0-9:.]+[^\s,\]}#]*)?")


class _NotToml(Exception):
    """The scanner is lost; the real parser says why."""


def find_positions(text: str) -> dict[Path, Place]:
    """Return the place of every key by its path, elements of arrays by their number.

    >>> find_positions("[a]\\nb = [1, 2]")[("a", "b", 1)].value
    Position(line=2, column=9)
    """
    scanner = _Scanner(text)
    with contextlib.suppress(_NotToml):
        scanner.document()
    return scanner.places


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.places: dict[Path, Place] = {}
        self._line_at = 0
        self._line = 1
        self._tables: dict[Path, int] = {}

    def document(self) -> None:
        table: Path = ()
        while self._skip(_BLANK) < len(self.text):
            if self._looking_at("["):
                table = self._header()
            else:
                self._pair(table, depth=len(table))

    def _header(self) -> Path:
        start = self._position()
        is_array = self._looking_at("[[")
        self.at += 2 if is_array else 1
        path = self._key(start)
        self._expect("]]" if is_array else "]")
        path = self._within_arrays(path)
        if is_array:
            number = self._tables.get(path, 0)
            self._tables[path] = number + 1
            self.places.setdefault(path, Place(start, start))
            path = (*path, number)
        self.places.setdefault(path, Place(start, start))
        return path

    def _within_arrays(self, path: Path) -> Path:
        """Put the number of the newest element where a header goes on inside an array."""
        found: Path = ()
        for part in path[:-1]:
            found = (*found, part)
            if found in self._tables:
                found = (*found, self._tables[found] - 1)
        return (*found, *path[-1:])

    def _pair(self, table: Path, depth: int) -> None:
        start = self._position()
        key = self._key(start)
        self._expect("=")
        self._skip(_SPACE)
        path = (*table, *key)
        for length in range(len(table) + 1, len(path)):
            self.places.setdefault(path[:length], Place(start, start))
        self.places.setdefault(path, Place(start, self._position()))
        self._value(path, depth + len(key))

    def _key(self, start: Position) -> Path:
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            match = _KEY_PART.match(self.text, self.at)
            if match is None:
                raise _NotToml
            self.at = match.end()
            parts.append(match["bare"] or match["basic"] or match["literal"] or "")
            if len(parts) > DEEPEST:
                raise TooDeep(start)
            self._skip(_SPACE)
            if not self._looking_at("."):
                return tuple(parts)
            self.at += 1

    def _value(self, path: Path, depth: int) -> None:
        if depth > DEEPEST:
            raise TooDeep(self._position())
        if self._looking_at("["):
            self._array(path, depth)
        elif self._looking_at("{"):
            self._inline_table(path, depth)
        else:
            quoted = self._looking_at('"') or self._looking_at("'")
            match = (_STRING if quoted else _SCALAR).match(self.text, self.at)
            if match is None:
                raise _NotToml
            self.at = match.end()

    def _array(self, path: Path, depth: int) -> None:
        self.at += 1
        number = 0
        while self._skip(_BLANK) < len(self.text) and not self._looking_at("]"):
            here = self._position()
            self.places.setdefault((*path, number), Place(here, here))
            self._value((*path, number), depth + 1)
            self._skip(_BLANK)
            if not self._looking_at("]"):
                self._expect(",")
            number += 1
        self._expect("]")

    def _inline_table(self, path: Path, depth: int) -> None:
        self.at += 1
        while self._skip(_BLANK) < len(self.text) and not self._looking_at("}"):
            self._pair(path, depth)
            self._skip(_BLANK)
            if not self._looking_at("}"):
                self._expect(",")
        self._expect("}")

    def _looking_at(self, token: str) -> bool:
        return self.text.startswith(token, self.at)

    def _expect(self, token: str) -> None:
        self._skip(_SPACE)
        if not self._looking_at(token):
            raise _NotToml
        self.at += len(token)

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at

    def _position(self) -> Position:
        newlines = self.text.count("\n", self._line_at, self.at)
        if newlines:
            self._line += newlines
            self._line_at = self.text.rindex("\n", 0, self.at) + 1
        return Position(self._line, self.at - self._line_at + 1)
