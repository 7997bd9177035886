"""The line and column of each key and value in a TOML document.

Runs wherever a configuration is read, before the real parser. It supplies the positions that tomli
does not, and rejects documents that make the parser slow or crash it. It checks nothing else: at
text that is not TOML it stops, and leaves the error to the parser. Raises TooMuch.
"""

from __future__ import annotations

import contextlib
import re
from bisect import bisect_right
from typing import NamedTuple, NoReturn

import tomli

Path = tuple[str | int, ...]

MAX_DEPTH = 8  # of nested tables and arrays, and of the parts of a dotted key
MAX_SCALAR_LENGTH = 100  # characters of an unquoted value: 64 bits in binary fit


class Position(NamedTuple):
    """A line and a column, both counted from 1; the column in characters."""

    line: int
    column: int


class Place(NamedTuple):
    """The positions of a key and of the start of its value."""

    key: Position
    value: Position


class TooMuch(ValueError):
    """The document is nested deeper, or has longer numbers, than any configuration needs."""

    def __init__(self, position: Position, text: str) -> None:
        self.position = position
        super().__init__(text)


class Repeated(NamedTuple):
    """A key or a table that the document defines twice, which TOML forbids."""

    path: Path
    first: Position
    again: Position


class Places:
    """The places of all keys by path; an element of an array has its index in the path."""

    def __init__(self, text: str) -> None:
        self.repeated: Repeated | None = None
        self._offsets: dict[Path, tuple[int, int]] = {}
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]

    def __contains__(self, path: Path) -> bool:
        return path in self._offsets

    def nearest(self, path: Path) -> Place:
        """Return the place of a key, or of its nearest ancestor in the document."""
        for length in range(len(path), 0, -1):
            if path[:length] in self:
                key, value = self._offsets[path[:length]]
                return Place(self.position(key), self.position(value))
        return Place(Position(1, 1), Position(1, 1))

    def position(self, offset: int) -> Position:
        line = bisect_right(self._lines, offset)
        return Position(line, offset - self._lines[line - 1] + 1)

    def add(self, path: Path, key: int, value: int) -> None:
        """Add a place; the first place of a path is kept."""
        self._offsets.setdefault(path, (key, value))

    def repeat(self, path: Path, first: int, again: int) -> None:
        """Note a repeated key; only the first repetition is kept."""
        if self.repeated is None:
            self.repeated = Repeated(path, self.position(first), self.position(again))


def find_places(text: str) -> Places:
    """Return the place of every key.

    >>> find_places("[a]\\nb = [1, 2]").nearest(("a", "b", 1)).value
    Position(line=2, column=9)
    """
    scanner = _Scanner(text)
    with contextlib.suppress(_NotToml):
        scanner.document()
    return scanner.places


# No quantifier is possessive: with one, Python 3.11.2 (Debian 12) does not find the end of a
# multi-line string. The expressions take linear time nevertheless, because the alternatives in a
# group start with different characters.
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY_PART = re.compile(r"""(?P<bare>[A-Za-z0-9_-]+)|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}'
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(  # a space may separate date and time
    r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9:.Zz+-]*|[^\s,\]}#=\[{\"']+"
)


class _NotToml(Exception):
    """The text is not TOML from here on; the parser reports why."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.places = Places(text)
        self._declared: dict[Path, int] = {}
        self._arrays: dict[Path, int] = {}  # the number of [[tables]] so far

    def document(self) -> None:
        table: Path = ()
        while self._skip(_BLANK) < len(self.text):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table, depth=len(table))

    def _header(self) -> Path:
        """Read `[a.b]` or `[[a.b]]`; return the path of that table."""
        brackets = 2 if self._looking_at("[[") else 1
        self.at += brackets
        parts = self._key()
        self._expect("]" * brackets)
        path: Path = ()
        for part, at in parts[:-1]:
            path = (*path, part)
            self.places.add(path, at, at)
            if path in self._arrays:  # it means the last element of the array
                path = (*path, self._arrays[path] - 1)
        last, at = parts[-1]
        path = (*path, last)
        self.places.add(path, at, at)
        if brackets == 2:
            number = self._arrays.get(path, 0)
            self._arrays[path] = number + 1
            path = (*path, number)
            self.places.add(path, at, at)
        else:
            self._declare(path, at)
        return path

    def _pair(self, table: Path, depth: int) -> None:
        parts = self._key()
        self._expect("=")
        self._skip(_SPACE)
        path = table
        for part, at in parts[:-1]:
            path = (*path, part)
            self.places.add(path, at, at)
        last, at = parts[-1]
        path = (*path, last)
        self.places.add(path, at, self.at)
        self._declare(path, at)
        self._value(path, depth + len(parts))

    def _declare(self, path: Path, at: int) -> None:
        if path in self._declared:
            self.places.repeat(path, self._declared[path], at)
        self._declared[path] = at

    def _key(self) -> list[tuple[str, int]]:
        """Read a key; return each of its parts with its offset."""
        parts: list[tuple[str, int]] = []
        while True:
            self._skip(_SPACE)
            match = _KEY_PART.match(self.text, self.at)
            if match is None:
                raise _NotToml
            parts.append((match["bare"] or _unquoted(match[0]), self.at))
            if len(parts) > MAX_DEPTH:
                self._too_much(parts[0][1], f"a key has more than {MAX_DEPTH} parts")
            self.at = match.end()
            self._skip(_SPACE)
            if not self._looking_at("."):
                return parts
            self.at += 1

    def _value(self, path: Path, depth: int) -> None:
        if depth > MAX_DEPTH:
            self._too_much(self.at, f"nested more than {MAX_DEPTH} deep")
        start = self.text[self.at : self.at + 1]
        if start == "[":
            self._array(path, depth)
        elif start == "{":
            self._inline_table(path, depth)
        elif start in ('"', "'"):
            self._take(STRING)
        else:
            at = self.at
            self._take(_SCALAR)
            if self.at - at > MAX_SCALAR_LENGTH:
                self._too_much(
                    at, f"an unquoted value has more than {MAX_SCALAR_LENGTH} characters"
                )

    def _array(self, path: Path, depth: int) -> None:
        self.at += 1
        number = 0
        while self._skip(_BLANK) < len(self.text) and not self._looking_at("]"):
            element = (*path, number)
            self.places.add(element, self.at, self.at)
            self._value(element, depth + 1)
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
        if not self._looking_at(token):
            raise _NotToml
        self.at += len(token)

    def _skip(self, pattern: re.Pattern[str]) -> int:
        """Skip what the pattern matches, which may be nothing."""
        match = pattern.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        return self.at

    def _take(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise _NotToml
        self.at = match.end()

    def _too_much(self, at: int, text: str) -> NoReturn:
        raise TooMuch(self.places.position(at), text)


def _unquoted(part: str) -> str:
    """Return a quoted part of a key as the parser decodes it."""
    if part[0] == '"' and "\\" in part:
        try:
            return str(tomli.loads(f"key = {part}")["key"])
        except ValueError:
            raise _NotToml from None
    return part[1:-1]
