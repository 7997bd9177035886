"""One event for the log: what it says, and its forms as text and as JSON.

Runs in every process. A client can never forge a line: whatever is not a printable character is
escaped, and long texts are cut. Never raises, but ValueError for what is no record.
"""

from __future__ import annotations

import json
import mmap
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from superd.errors import reason, shown

LONGEST_TEXT = 2048
LONGEST_DETAIL = 60  # lines of a traceback
LATEST = 1e11  # a time after it, in the year 5138, is none

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[str, ...] = get_args(Level)
_SEVERITY = {level: number for number, level in enumerate(LEVELS)}


@dataclass(frozen=True)
class Record:
    """An event. `detail` has the lines of a traceback, each at most a line of the log. Raises
    ValueError for a level that is none: whoever says it is to hear it, not the master.
    """

    level: str
    message: str
    service: str = ""
    connection: str = ""
    peer: str = ""
    pid: int = 0
    time: float = 0.0
    detail: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"there is no level {shown(self.level)}, only {', '.join(LEVELS)}")


Report = Callable[[Record], None]


class Threshold:
    """The least severe level that is logged, in memory that those who are forked later share: what
    the master sets holds for all of them at once.
    """

    def __init__(self, level: str) -> None:
        self._cell = mmap.mmap(-1, 1)
        self.set(level)

    def set(self, level: str) -> None:
        self._cell[0] = _SEVERITY[level]

    def admits(self, level: str) -> bool:
        """Tell whether a record is wanted; one whose level is none is for Record to refuse."""
        return _SEVERITY.get(level, len(LEVELS)) >= self._cell[0]


def failure(message: str, error: BaseException, **context: Any) -> Record:
    """Return the record of an exception, with its traceback."""
    lines = [
        line
        for entry in traceback.format_exception(error)
        for line in entry.rstrip("\n").split("\n")
    ]
    if len(lines) > LONGEST_DETAIL:
        lines[LONGEST_DETAIL // 2 : 1 - LONGEST_DETAIL // 2] = ["  ..."]
    text = f"{message}: {reason(error)}"
    return Record("error", text, **context, detail=tuple(lines))


def kind_of(error: BaseException) -> tuple[object, ...]:
    """Return what an exception has in common with those of the same mistake, for a FloodGate."""
    places = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return (type(error), *places[-1:])


def encoded(record: Record) -> dict[str, Any]:
    """Return a record as a worker sends it to the master, each text cut to its longest."""
    texts = {key: cut(text) for key, text in _texts(record).items()}
    return {**asdict(record), **texts, "detail": [cut(line) for line in record.detail]}


def decoded(data: dict[str, Any], pid: int) -> Record:
    """Return the record that worker `pid` sent; ValueError where it is not one."""
    try:
        record = Record(**{**data, "pid": pid})
    except (TypeError, ValueError) as error:
        raise ValueError(f"not a log record: {error}") from None
    lines = record.detail
    if not isinstance(lines, list) or len(lines) > LONGEST_DETAIL:
        raise ValueError("not a log record: its detail is not a few lines")
    if not all(isinstance(text, str) for text in (*_texts(record).values(), *lines)):
        raise ValueError("not a log record: a text is none")
    if not isinstance(record.time, float) or not 0 <= record.time < LATEST:
        raise ValueError("not a log record: its time is none")
    return replace(record, detail=tuple(lines))


def _texts(record: Record) -> dict[str, str]:
    return {key: getattr(record, key) for key in ("message", "service", "connection", "peer")}


def as_text(record: Record) -> str:
    """Return the record's lines: when, who, what, and to whom it happened."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.time))
    milliseconds = int(record.time % 1 * 1000)
    start = f"{stamp}.{milliseconds:03d} superd[{record.pid}] "
    return "\n".join(start + line for line in as_message(record).split("\n"))


def as_message(record: Record) -> str:
    """Return the record's lines without time and process, for who adds these."""
    named = {"service": record.service, "conn": record.connection, "peer": record.peer}
    context = "".join(f" {key}={escaped(value)}" for key, value in named.items() if value)
    lines = [escaped(record.message) + context, *(f"| {escaped(line)}" for line in record.detail)]
    return "\n".join(f"{record.level}: {line}" for line in lines)


def as_xinetd(record: Record) -> str:
    """Return the record's lines as xinetd writes its own messages."""
    stamp = time.strftime("%y/%m/%d@%H:%M:%S", time.localtime(record.time))
    start = f"{stamp}: superd[{record.pid}]: "
    lines = (line.partition(": ") for line in as_message(record).split("\n"))
    return "\n".join(f"{start}{level.upper()}: {text}" for level, _, text in lines)


def as_json(record: Record) -> str:
    """Return the record as one line of JSON, without what is empty."""
    data = {**encoded(record), "pid": record.pid, "time": round(record.time, 3)}
    return json.dumps({key: value for key, value in data.items() if value})


def escaped(text: str) -> str:
    """Return text as printable characters only, and no more than LONGEST_TEXT of them."""
    text = text[: LONGEST_TEXT + 1]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return cut(text)


def cut(text: str) -> str:
    """Return text, or its start where it is too long."""
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."


class FloodGate:
    """Lets the first of many like records pass, and tells how many followed.

    `flush` is to be called about once a second; it starts a new window. While a flood lasts, a
    window has one line.
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
        self._held = {key: held for key, held in self._held.items() if held[1]}
        for key, (record, count) in self._held.items():
            self._held[key] = (record, 0)
            message = f"{record.message} ({count} more like this)"
            self._report(Record(record.level, message, service=record.service, peer=record.peer))
