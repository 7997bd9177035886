"""A line for the log, and its formats: text, JSON and xinetd's.

Runs in every process. A client cannot forge a line: characters that are not printable are escaped,
and long texts are cut. Raises only ValueError, for data that is not a record.
"""

from __future__ import annotations

import json
import mmap
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from superd.errors import reason, shown

LONGEST_TEXT = 2048  # characters
LONGEST_DETAIL = 60  # lines of a traceback
LATEST = 1e11  # times after it, in the year 5138, are invalid

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[str, ...] = get_args(Level)
_SEVERITY = {level: number for number, level in enumerate(LEVELS)}


@dataclass(frozen=True)
class Record:
    """A line for the log. `detail` has the lines of a traceback. Raises ValueError for an unknown
    level, so that the error occurs in the caller and not in the master.
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
            raise ValueError(f"expected a level ({', '.join(LEVELS)}), found {shown(self.level)}")


Report = Callable[[Record], None]


class Threshold:
    """The least severe level that is logged, in memory shared with all processes that are forked
    later: a change by the master applies to all of them at once.
    """

    def __init__(self, level: str) -> None:
        self._cell = mmap.mmap(-1, 1)
        self.set(level)

    def set(self, level: str) -> None:
        self._cell[0] = _SEVERITY[level]

    def admits(self, level: str) -> bool:
        """Tell whether a level is logged. True for an unknown level, which Record rejects."""
        return _SEVERITY.get(level, len(LEVELS)) >= self._cell[0]


def failure(message: str, error: BaseException, **context: Any) -> Record:
    """Return the record of an exception, with its traceback."""
    text = f"{message}: {reason(error)}"
    return Record("error", text, **context, detail=short_detail(traceback_of(error)))


def traceback_of(error: BaseException) -> list[str]:
    """Return the lines of an exception's traceback."""
    return [
        line
        for entry in traceback.format_exception(error)
        for line in entry.rstrip("\n").split("\n")
    ]


def short_detail(lines: Sequence[str]) -> tuple[str, ...]:
    """Return lines as the detail of a record, without those in the middle if they are too many."""
    half = LONGEST_DETAIL // 2
    if len(lines) > LONGEST_DETAIL:
        return (*lines[:half], "  ...", *lines[1 - half :])
    return tuple(lines)


def kind_of(error: BaseException) -> tuple[object, ...]:
    """Return a key for a FloodGate: type and place, the same for repetitions of an exception."""
    places = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return (type(error), *places[-1:])


def encoded(record: Record) -> dict[str, Any]:
    """Return a record as a worker sends it to the master, with long texts cut."""
    texts = {key: cut(text) for key, text in _texts(record).items()}
    return {**asdict(record), **texts, "detail": [cut(line) for line in record.detail]}


def decoded(data: dict[str, Any], pid: int) -> Record:
    """Return the record that worker `pid` sent; ValueError if it is not one."""
    try:
        record = Record(**{**data, "pid": pid})
    except (TypeError, ValueError) as error:
        raise ValueError(f"not a log record: {error}") from None
    lines = record.detail
    if not isinstance(lines, list) or len(lines) > LONGEST_DETAIL:
        raise ValueError(f"not a log record: expected a detail of at most {LONGEST_DETAIL} lines")
    if not all(isinstance(text, str) for text in (*_texts(record).values(), *lines)):
        raise ValueError("not a log record: expected a string in each text")
    if not isinstance(record.time, float) or not 0 <= record.time < LATEST:
        raise ValueError("not a log record: invalid time")
    return replace(record, detail=tuple(lines))


def _texts(record: Record) -> dict[str, str]:
    return {key: getattr(record, key) for key in ("message", "service", "connection", "peer")}


def as_text(record: Record) -> str:
    """Return the record's lines with time, process, level, message and context."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.time))
    milliseconds = int(record.time % 1 * 1000)
    start = f"{stamp}.{milliseconds:03d} superd[{record.pid}] "
    return "\n".join(start + line for line in as_message(record).split("\n"))


def as_message(record: Record) -> str:
    """Return the record's lines without time and process, for sinks that add these."""
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
    """Return the record as one line of JSON, without empty fields."""
    data = {**encoded(record), "pid": record.pid, "time": round(record.time, 3)}
    return json.dumps({key: value for key, value in data.items() if value})


def escaped(text: str) -> str:
    """Return text in printable characters, cut to LONGEST_TEXT."""
    text = text[: LONGEST_TEXT + 1]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return cut(text)


def cut(text: str) -> str:
    """Return text, cut to LONGEST_TEXT."""
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."


def _host_of(record: Record) -> str:
    return record.peer.rpartition(":")[0] or record.peer


class FloodGate:
    """Reports the first of many similar records, and then how many followed.

    `flush` is called about once a second and starts a new window. During a flood each window has
    one line, which names a client only if all of its records are about that one.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._held: dict[object, tuple[Record, int]] = {}

    def report(self, key: object, record: Record) -> None:
        """Report the record, unless one of the same key was reported in this window."""
        if key in self._held:
            held, count = self._held[key]
            if count and _host_of(held) != _host_of(record):
                record = replace(record, peer="")  # not all of these are of one client
            self._held[key] = (record, count + 1)
        else:
            self._held[key] = (record, 0)
            self._report(record)

    def flush(self) -> None:
        """Report the last suppressed record of each key, with their number."""
        for key, (record, count) in self._held.copy().items():  # other threads may report
            if not count:
                self._held.pop(key, None)
                continue
            self._held[key] = (record, 0)
            message = f"{record.message} ({count} more like this)"
            self._report(Record(record.level, message, service=record.service, peer=record.peer))
