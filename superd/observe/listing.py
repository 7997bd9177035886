"""The rows of `superd connections`, one for each connection.

Workers make them, the master checks them, and the command line shows them. Raises ValueError for a
row of another form.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from superd.errors import shown
from superd.observe.connections import LONGEST_FIELD

Row = dict[str, Any]  # see row_of

MAX_ROWS = 30_000  # of one worker; further connections are only counted
MAX_ROW_SIZE = 1024  # bytes; few rows have more than a third of it
STATES = ("open", "half-closed", "closing", "ending", "running")

_ID = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{1,16})")
_TEXTS = ("peer", "local", "target")
_COUNTS = ("in", "out")
_KEYS = frozenset({"id", "service", *_TEXTS, "age", *_COUNTS, "state"})


def parse_id(text: str) -> tuple[int, int]:
    """Return the worker's serial and its number of the connection, from the id in the record."""
    found = _ID.fullmatch(text)
    if found is None:
        raise ValueError(f"expected a connection's id, such as 1-2f, found {shown(text)}")
    return int(found[1], 16), int(found[2], 16)


def row_of(
    known: Row, service: str, age: float, state: str, passed: tuple[int, int] | None, target: str
) -> Row:
    """Return the row of a connection. `known` has its id, peer and local address; `passed` has the
    bytes received and sent, or is None if they are unknown. A connection that began after the
    time of the listing has the age 0.
    """
    received, sent = passed or (None, None)
    told = {"service": service, "age": max(0.0, round(age, 3)), "in": received, "out": sent}
    return {**known, **told, "state": state, "target": target}


def checked(row: object, services: Collection[str]) -> Row:
    """Return a row that a worker sent; ValueError unless it describes one of its services."""
    if not isinstance(row, dict) or row.keys() != _KEYS:
        raise ValueError("not a row of a connection")
    if not isinstance(row["id"], str) or not _ID.fullmatch(row["id"]):
        raise ValueError("invalid id in a row of a connection")
    if row["service"] not in services or row["state"] not in STATES:
        raise ValueError("service of another worker, or unknown state, in a row of a connection")
    if any(not isinstance(row[key], str) or len(row[key]) > LONGEST_FIELD for key in _TEXTS):
        raise ValueError("invalid text in a row of a connection")
    if any(not _is_count(row[key]) for key in _COUNTS):
        raise ValueError("invalid count in a row of a connection")
    if not isinstance(row["age"], float) or not 0 <= row["age"] < 1e10:
        raise ValueError("invalid age in a row of a connection")
    return row


def _is_count(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value < 1 << 64)
