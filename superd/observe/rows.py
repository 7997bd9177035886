"""What a service has to show of its state: rows of equal keys, such as the targets of a forward.

Made by plugins in workers, kept by the master, shown in the command line. The master believes
nothing of it but its form. Raises ValueError where that is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from superd.observe.records import escaped

Rows = list[dict[str, str | int | float]]

MOST_ROWS = 200
MOST_KEYS = 20
LONGEST_TEXT = 200
LARGEST = 32 * 1024  # bytes of all rows of a service as JSON


def fitting(rows: Iterable[dict[str, Any]]) -> Rows:
    """Return what may be told to the master: as many rows as it takes, and no long texts."""
    told: Rows = []
    size = 0
    for row in rows:
        short = {str(key): _short(value) for key, value in list(row.items())[:MOST_KEYS]}
        size += len(json.dumps(short))
        if size > LARGEST or len(told) == MOST_ROWS:
            break
        told.append(short)
    return told


def checked(rows: object) -> Rows:
    """Return rows as a worker sent them, if they are rows."""
    if not isinstance(rows, list) or len(rows) > MOST_ROWS:
        raise ValueError("not rows of a status")
    for row in rows:
        if not isinstance(row, dict) or len(row) > MOST_KEYS:
            raise ValueError("not a row of a status")
        if any(not isinstance(value, (str, int, float)) for value in row.values()):
            raise ValueError("a row of a status holds what is no text and no number")
    return rows


def table(rows: Rows) -> list[str]:
    """Return rows as lines for a person: a line with the keys, and the columns below each other."""
    if not rows:
        return []
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [keys, *([_text(row.get(key, "")) for key in keys] for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(keys))]
    pairs = (zip(line, widths, strict=True) for line in lines)
    return ["  ".join(f"{text:<{width}}" for text, width in line).rstrip() for line in pairs]


def _short(value: object) -> str | int | float:
    return value if isinstance(value, (int, float)) else escaped(str(value))[:LONGEST_TEXT]


def _text(value: str | int | float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else escaped(str(value))
