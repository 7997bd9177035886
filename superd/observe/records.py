"""One event for the log: what it says, and its forms as text and as JSON.

Runs in every process. A client can never forge a line: whatever is not a printable character is
escaped, and long texts are cut. Never raises, but ValueError for a record that cannot be decoded.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from superd.errors import reason

LONGEST_TEXT = 2048
LONGEST_DETAIL = 60  # lines of a traceback

LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Record:
    """An event. `detail` has the lines of a traceback, each at most a line of the log."""

    level: str
    message: str
    service: str = ""
    connection: str = ""
    peer: str = ""
    pid: int = 0
    time: float = 0.0
    detail: tuple[str, ...] = field(default=())


Report = Callable[[Record], None]


def failure(message: str, error: BaseException, **context: Any) -> Record:
    """Return the record of an exception, with its traceback."""
    lines = [
        line
        for entry in traceback.format_exception(error)
        for line in entry.rstrip("\n").split("\n")
    ]
    if len(lines) > LONGEST_DETAIL:
        lines[LONGEST_DETAIL // 2 : -LONGEST_DETAIL // 2] = ["  ..."]
    text = f"{message}: {reason(error)}"
    return Record("error", text, **context, detail=tuple(lines))


def encoded(record: Record) -> bytes:
    """Return a record as a worker sends it to the master."""
    return json.dumps(asdict(record)).encode("ascii")


def decoded(data: dict[str, Any]) -> Record:
    """Return the record that a worker sent; ValueError where it is not one."""
    try:
        record = Record(**{**data, "detail": tuple(map(str, data.get("detail", ())))})
    except TypeError as error:
        raise ValueError(f"not a log record: {error}") from None
    texts = (record.message, record.service, record.connection, record.peer)
    if record.level not in LEVELS or not all(isinstance(text, str) for text in texts):
        raise ValueError("not a log record")
    return record


def as_text(record: Record) -> str:
    """Return the record's lines: when, what, and to whom it happened."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.time))
    milliseconds = int(record.time % 1 * 1000)
    start = f"{stamp}.{milliseconds:03d} superd[{record.pid}] {record.level}: "
    named = {"service": record.service, "conn": record.connection, "peer": record.peer}
    context = "".join(f" {key}={escaped(value)}" for key, value in named.items() if value)
    lines = [escaped(record.message) + context, *(f"| {escaped(line)}" for line in record.detail)]
    return "\n".join(start + line for line in lines)


def as_json(record: Record) -> str:
    """Return the record as one line of JSON, without what is empty."""
    data = {key: value for key, value in asdict(record).items() if value}
    data["message"] = record.message[:LONGEST_TEXT]
    return json.dumps(data)


def escaped(text: str) -> str:
    """Return text as printable characters only, and no more than LONGEST_TEXT of them."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."


class FloodGate:
    """Lets the first of many like records pass, and tells how many followed.

    `flush` is to be called about once a second; it starts a new window.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._held: dict[object, tuple[Record, int]] = {}

    def report(self, key: object, record: Record) -> None:
        """Report the record, unless one of the same key was reported in this window."""
        if key in self._held:
            _, count = self._held[key]
            self._held[key] = (record, count + 1)
        else:
            self._held[key] = (record, 0)
            self._report(record)

    def flush(self) -> None:
        """Report the last record of each key that was held back, with their number."""
        held, self._held = self._held, {}
        for record, count in held.values():
            if count:
                message = f"{record.message} ({count} more like this)"
                self._report(
                    Record(record.level, message, service=record.service, peer=record.peer)
                )
