"""The status rows of a service, with equal keys: for instance the targets of a forward.

Plugins make them in workers, the master keeps them, and the command line shows them. The master
checks their form and does not interpret them. Raises ValueError for a wrong form.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from superd.observe.records import escaped

Rows = list[dict[str, str | int | float]]

MAX_ROWS = 200
MAX_KEYS = 20
LONGEST_TEXT = 200  # characters
MAX_SIZE = 32 * 1024  # bytes of all rows of a service as JSON


def fitting(rows: Iterable[dict[str, Any]]) -> Rows:
    """Return rows that the master accepts: as many as fit, with long texts cut."""
    told: Rows = []
    size = 0
    for row in rows:
        short = {str(key): _short(value) for key, value in list(row.items())[:MAX_KEYS]}
        size += len(json.dumps(short))
        if size > MAX_SIZE or len(told) == MAX_ROWS:
            break
        told.append(short)
    return told


def checked(rows: object) -> Rows:
    """Return the rows that a worker sent; ValueError if they are not rows."""
    if not isinstance(rows, list) or len(rows) > MAX_ROWS:
        raise ValueError(f"expected a list of at most {MAX_ROWS} status rows")
    for row in rows:
        if not isinstance(row, dict) or len(row) > MAX_KEYS:
            raise ValueError(f"expected a status row of at most {MAX_KEYS} keys")
        if any(not isinstance(value, (str, int, float)) for value in row.values()):
            raise ValueError("expected texts and numbers in a status row")
    return rows


def table(rows: Rows) -> list[str]:
    """Return rows as lines of aligned columns; the first line has the keys."""
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
