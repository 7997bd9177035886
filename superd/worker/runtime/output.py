"""What plugins and their libraries print, warn and log by Python's own means, as log records.

Runs in the worker and in the processes that it forks, in every thread. A daemon has no terminal, so
`print`, `sys.stderr`, `logging` and `warnings` would be lost. Takes no lock and never blocks, as a
finalizer or a forked process may print at any moment. What other code writes to descriptors 1 and 2
goes through a pipe to the master. Never raises but for what is no text.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import Context, ContextVar, copy_context
from types import FrameType

from superd.errors import reason
from superd.observe.records import (
    LONGEST_TEXT,
    FloodGate,
    Level,
    Record,
    Report,
    Threshold,
    short_detail,
    traceback_of,
)

MAX_LINES = 100  # in a second and a process; of further ones the log has their number

serving: ContextVar[str] = ContextVar("serving", default="")  # the service whose code runs


def scope_of(service: str) -> Context:
    """Return a context in which code runs for a service; what it schedules inherits that."""
    scope = copy_context()
    scope.run(serving.set, service)
    return scope


class Output:
    """The output of one worker, and of the processes that it forks.

    `owner_of` finds the service of code that does not run in the scope of one, by its stack.
    """

    def __init__(self, log: Report, threshold: Threshold) -> None:
        self._log = log
        self._gate = FloodGate(log)
        self.owner_of: Callable[[Sequence[FrameType]], tuple[str, str]] | None = None
        self._threshold = threshold
        self._level = logging.NOTSET
        self._second = 0
        self._lines = 0

    def take_over(self) -> None:
        """Replace Python's streams and the handlers of its log."""
        sys.stdout, sys.stderr = Stream(self, "info", 1), Stream(self, "warning", 2)
        root = logging.getLogger()
        root.handlers[:] = [_Handler(self)]
        self._level = root.level
        self.tend()
        logging.captureWarnings(capture=True)

    def tend(self) -> None:
        """Report how many lines were left out, and have Python's log pass on records of superd's
        level, unless a plugin has set a level. Called about once a second.
        """
        self._gate.flush()
        root = logging.getLogger()
        wanted = logging.DEBUG if self._threshold.admits("debug") else logging.INFO
        if root.level == self._level != wanted:
            root.setLevel(wanted)
            self._level = wanted

    def report(self, level: Level, text: str, detail: Sequence[str] = ()) -> None:
        """Log a text for the service whose code runs. Nothing below this prints, warns or logs."""
        if self._threshold.admits(level):
            service = serving.get() or self._owner()
            record = Record(level, text, service, detail=short_detail(detail))
            if self._is_flood():
                self._gate.report(service, record)
            else:
                self._log(record)

    def _is_flood(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
            self._gate.flush()  # a process that was forked has no timer
        self._lines += 1
        return self._lines > MAX_LINES

    def _owner(self) -> str:
        frames: list[FrameType] = []
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            frames.append(frame)
            frame = frame.f_back
        return "" if self.owner_of is None else self.owner_of(frames[::-1])[0]


class Stream(io.TextIOBase):
    """Standard output or error: each line is a record. A part of a line waits for its rest, in each
    thread by itself, or until `flush`. Its descriptor and its `buffer` lead to the master.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, output: Output, level: Level, descriptor: int) -> None:
        super().__init__()
        self.buffer = os.fdopen(descriptor, "wb", 0, closefd=False)
        self._output = output
        self._level = level
        self._descriptor = descriptor
        self._parts = threading.local()

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        *lines, rest = (getattr(self._parts, "text", "") + text).split("\n")
        if len(rest) > LONGEST_TEXT:
            lines, rest = [*lines, rest], ""
        self._parts.text = rest
        for line in lines:
            self._report(line)
        return len(text)

    def flush(self) -> None:
        part, self._parts.text = getattr(self._parts, "text", ""), ""
        self._report(part)

    def _report(self, line: str) -> None:
        if line.strip():
            self._output.report(self._level, line)

    def close(self) -> None:
        """Do nothing, since other plugins print as well."""


class _Handler(logging.Handler):
    """Passes records of Python's log on, with the name of their logger."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def createLock(self) -> None:  # noqa: N802  the name in logging
        """Have no lock: a handler that another thread or a finalizer interrupts must not wait."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text, *more = record.getMessage().rstrip("\n").split("\n")
            if record.exc_info and (error := record.exc_info[1]) is not None:
                more += traceback_of(error)
            if record.stack_info:
                more += record.stack_info.split("\n")
            if record.name not in ("root", "py.warnings"):
                text = f"{record.name}: {text}"
            self._output.report(_level_of(record.levelno), text, more)
        except Exception as error:  # noqa: BLE001  a message and arguments that do not fit
            text = f"{record.name}: a message cannot be formatted: {reason(error)}"
            self._output.report("error", text, [f"{record.pathname}:{record.lineno}"])


def _level_of(number: int) -> Level:
    """Return superd's level for one of Python's."""
    if number >= logging.ERROR:
        return "error"
    if number >= logging.WARNING:
        return "warning"
    return "info" if number >= logging.INFO else "debug"
