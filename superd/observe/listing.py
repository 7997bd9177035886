"""One connection as `superd connections` lists it: its form on the way from a worker.

Made in workers, checked in the master, shown in the command line. Raises ValueError for what is no
such row.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from superd.errors import shown
from superd.observe.connections import LONGEST_FIELD

Row = dict[str, Any]  # of what can be told: see row_of

MOST = 30_000  # of one worker; there may be more, which are counted only
ROOM = 1024  # bytes of a row; few have more than a third of it
STATES = ("open", "half-closed", "closing", "ending", "running")

_ID = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{1,16})")
_TEXTS = ("peer", "local", "target")
_COUNTS = ("in", "out")
_KEYS = frozenset({"id", "service", *_TEXTS, "age", *_COUNTS, "state"})


def parse_id(text: str) -> tuple[int, int]:
    """Return a worker's serial and its number of a connection, from the name in the record."""
    found = _ID.fullmatch(text)
    if found is None:
        raise ValueError(f"a connection's id is such as 1-2f, found {shown(text)}")
    return int(found[1], 16), int(found[2], 16)


def row_of(
    known: Row, service: str, age: float, state: str, passed: tuple[int, int] | None, target: str
) -> Row:
    """Return the row of a connection; `known` has its id, peer and local address, and `passed` the
    bytes that came and went, where anybody knows. What has begun since the time that ages are of
    is new.
    """
    received, sent = passed or (None, None)
    told = {"service": service, "age": max(0.0, round(age, 3)), "in": received, "out": sent}
    return {**known, **told, "state": state, "target": target}


def checked(row: object, services: Collection[str]) -> Row:
    """Return a row as a worker sent it, if it is one of its own services."""
    if not isinstance(row, dict) or row.keys() != _KEYS:
        raise ValueError("not the row of a connection")
    if not isinstance(row["id"], str) or not _ID.fullmatch(row["id"]):
        raise ValueError("a connection without an id")
    if row["service"] not in services or row["state"] not in STATES:
        raise ValueError("a connection of a service that is not its own, or in no known state")
    if any(not isinstance(row[key], str) or len(row[key]) > LONGEST_FIELD for key in _TEXTS):
        raise ValueError("a connection with a text that is none")
    if any(not _is_count(row[key]) for key in _COUNTS):
        raise ValueError("a connection with a count that is none")
    if not isinstance(row["age"], float) or not 0 <= row["age"] < 1e10:
        raise ValueError("a connection with an age that is none")
    return row


def _is_count(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value < 1 << 64)
