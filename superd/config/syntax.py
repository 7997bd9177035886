"""Says what is wrong with a text that is not TOML, and where it begins: the parser reports where it
could not go on, such as the end of the file for an array that was not closed.

Runs wherever a configuration is read, after the parser has failed. Never raises.
"""

from __future__ import annotations

import re

import tomli

from superd.config.positions import STRING, Places, Position
from superd.errors import shown

BRACKETS = {"[": "array", "{": "inline table"}
EMPTY = '""'  # as which the start of a multi-line string without an end can be read
TRUTHS = frozenset(("yes", "no", "on", "off", "true", "false"))
_WORD = re.compile(r"[^\s,\]}#]+")


def mistake_in(text: str, error: tomli.TOMLDecodeError, places: Places) -> tuple[Position, str]:
    """Return the place of a mistake and what it is."""
    found = _unclosed(text, error)
    if found is None:
        return Position(error.lineno, error.colno), error.msg[:1].lower() + error.msg[1:]
    offset, words = found
    return places.position(offset), words


def _unclosed(text: str, error: tomli.TOMLDecodeError) -> tuple[int, str] | None:
    """Return the offset and the words for a mistake that has better ones than the parser's."""
    opened, string = _open_at(text, error.pos)
    if string is not None:
        return string, "the string is not closed"
    rest = text[error.pos :]
    if error.msg.startswith("Unclosed") and rest.startswith(('"', "'")):
        return error.pos, "expected a comma before this value"
    is_over = error.msg.startswith("Unclosed") or (
        error.msg == "Invalid value" and not rest.strip()
    )
    if opened and is_over:
        return opened[-1], f"the {BRACKETS[text[opened[-1]]]} is not closed"
    word = _WORD.match(rest)
    if error.msg == "Invalid value" and word:
        if word[0].lower() in TRUTHS:
            return error.pos, f"expected true or false, found {word[0]}"
        if word[0][0] not in "[{\"'":
            return (
                error.pos,
                f"expected a value, found {shown(word[0])[1:-1]}; a string needs quotes",
            )
    return None


def _open_at(text: str, end: int) -> tuple[list[int], int | None]:
    """Return the offsets of the brackets that are open at `end`, and of an unclosed string."""
    opened: list[int] = []
    at = 0
    while at < end:
        character = text[at]
        if character == "#":
            at = text.find("\n", at)
            if at < 0:
                break
        elif character in "\"'":
            string = STRING.match(text, at)
            is_long = text.startswith(3 * character, at)
            if string is None or (is_long and len(string[0]) == len(EMPTY)):
                return opened, at
            at = string.end() - 1
        elif character in BRACKETS:
            opened.append(at)
        elif character in "]}" and opened:
            opened.pop()
        at += 1
    return opened, None
