"""Where log records end: standard error, a file, syslog. The sinks belong to the master.

Runs in the master. Never lets a sink that fails stop the service: failures are counted.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from logging import handlers

from superd.errors import SuperdError, reason
from superd.observe.records import Record, as_json, as_text

SYSLOG_SOCKET = "/dev/log"

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class _Rendered(logging.Formatter):
    def __init__(self, log_format: str) -> None:
        super().__init__()
        self.render = as_json if log_format == "json" else as_text

    def format(self, record: logging.LogRecord) -> str:
        return self.render(record.record)  # type: ignore[attr-defined]  # set by Log.write


class Log:
    """Writes records to all sinks; `failures` counts those that could not be written."""

    def __init__(self, sinks: Sequence[str], log_format: str) -> None:
        self.failures = 0
        self.sinks = [self._sink(name, log_format) for name in sinks]

    def _sink(self, name: str, log_format: str) -> logging.Handler:
        handler: logging.Handler
        try:
            if name == "stderr":
                handler = logging.StreamHandler(sys.stderr)
            elif name == "syslog":
                handler = handlers.SysLogHandler(SYSLOG_SOCKET)
            else:
                handler = handlers.WatchedFileHandler(name, encoding="utf-8")
        except OSError as error:
            raise SuperdError(f"cannot log to {name}: {reason(error)}") from None
        handler.setFormatter(_Rendered(log_format))
        handler.handleError = self._failed  # type: ignore[method-assign]  # as logging has it
        return handler

    def _failed(self, record: logging.LogRecord) -> None:
        self.failures += 1

    def write(self, record: Record) -> None:
        """Write a record; the master's own have no pid and no time yet."""
        if not record.time:
            record = replace(record, time=time.time(), pid=os.getpid())
        entry = logging.LogRecord("superd", _LEVELS[record.level], "", 0, "", None, None)
        entry.record = record
        for sink in self.sinks:
            sink.handle(entry)

    def info(self, message: str, service: str = "") -> None:
        self.write(Record("info", message, service=service))

    def warning(self, message: str, service: str = "") -> None:
        self.write(Record("warning", message, service=service))

    def error(self, message: str, service: str = "") -> None:
        self.write(Record("error", message, service=service))

    def reopen(self) -> None:
        """Open files anew, after they were renamed."""
        for sink in self.sinks:
            if isinstance(sink, handlers.WatchedFileHandler):
                sink.reopenIfNeeded()
