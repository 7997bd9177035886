"""The log: writes records and the events of connections to one or several sinks.

Runs in the master. A sink that fails never stops the service: lines that it does not take are
dropped and counted, and the count is logged once it takes lines again. syslog and the journal may
start after superd, if there is another sink. Raises SuperdError if a sink cannot be opened at the
start.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from superd.config.model import Settings
from superd.config.values import LOG_SINKS
from superd.errors import SuperdError, reason
from superd.master.logs.sinks import (
    JOURNAL_SOCKET,
    SYSLOG_SOCKET,
    File,
    Journal,
    Sink,
    Socket,
    StandardError,
    Syslog,
    Unwritten,
)
from superd.observe.records import LEVELS, Record, Threshold


def log_of(settings: Settings, *, in_background: bool) -> Log:
    """Return the log that a configuration asks for."""
    daemon = settings.daemon
    return Log(
        _sink_names(settings, daemon.log, in_background=in_background),
        daemon.log_format,
        record_sinks=_sink_names(settings, daemon.record_log, in_background=in_background),
        record_format=daemon.record_format or "",
        level=daemon.log_level,
    )


def _sink_names(settings: Settings, names: Iterable[str], *, in_background: bool) -> list[str]:
    """Return the names of sinks; a path is relative to the configuration.

    A daemon has no standard error: it logs to syslog instead, if there is a syslog socket.
    """
    directory = settings.file.parent
    sinks = {name if name in LOG_SINKS else str(directory / name): None for name in names}
    if in_background and "stderr" in sinks:
        del sinks["stderr"]
        sinks |= {"syslog": None} if os.path.exists(SYSLOG_SOCKET) else {}
    return list(sinks)


class Log:
    """Writes records to `sinks`, and events to `record_sinks`, or to `sinks` if there are none.

    `failures` counts the lines that a sink did not take. `threshold` is the level in memory shared
    with the workers; a worker may overwrite it, so the master itself uses `level`.
    """

    def __init__(
        self,
        sinks: Sequence[str],
        log_format: str,
        syslog_socket: str = SYSLOG_SOCKET,
        *,
        record_sinks: Sequence[str] = (),
        record_format: str = "",
        journal_socket: str = JOURNAL_SOCKET,
        level: str = "debug",
    ) -> None:
        self.failures = 0
        self.level = level
        self.threshold = Threshold(level)
        sockets = {"syslog": syslog_socket, "journal": journal_socket}
        self.sinks = [_opened(name, log_format, sockets) for name in sinks]
        self.record_sinks = self.sinks
        form = record_format or log_format
        if record_sinks or form != log_format:
            names = record_sinks or sinks
            self.record_sinks = [_opened(name, form, sockets) for name in names]
        for opened in (self.sinks, self.record_sinks):
            if opened and len(absent := _absent(opened)) == len(opened):
                self.close()
                raise SuperdError(absent[0])

    @property
    def absent(self) -> list[str]:
        """Why some sinks take no lines yet."""
        return _absent(self._all_sinks())

    def write(self, record: Record) -> None:
        """Write a record. Records of the master get their pid and time here."""
        if LEVELS.index(record.level) < LEVELS.index(self.level):
            return
        record = record if record.time else _stamped(record)
        for sink in self.sinks:
            self._write(sink, lambda sink=sink: sink.write(record), 1)  # type: ignore[misc]

    def write_events(self, batch: bytes) -> None:
        """Write a batch of lines in the form in which workers send them."""
        number = batch.count(b"\n")
        for sink in self.record_sinks:
            self._write(sink, lambda sink=sink: sink.write_events(batch), number)  # type: ignore[misc]

    def _write(self, sink: Sink, write: Callable[[], None], number: int) -> None:
        try:
            if sink.lost:
                sink.write(_stamped(Record("warning", f"{sink.lost} log records were lost")))
                sink.lost = 0
            try:
                write()
            except Unwritten as error:
                number = min(number, error.lines)
                raise
        except (OSError, ValueError):
            sink.lost += number
            self.failures += number

    def info(self, message: str, service: str = "") -> None:
        self.write(Record("info", message, service=service))

    def warning(self, message: str, service: str = "") -> None:
        self.write(Record("warning", message, service=service))

    def error(self, message: str, service: str = "") -> None:
        self.write(Record("error", message, service=service))

    def set_level(self, level: str) -> None:
        """Log records of at least this level, here and in all workers."""
        self.level = level
        self.threshold.set(level)

    def reopen(self) -> list[str]:
        """Reopen log files, after they were renamed; return why some could not be reopened. Their
        old files stay in use.
        """
        failures = []
        for sink in self._all_sinks():
            try:
                sink.reopen()
            except OSError as error:
                failures.append(f"log file not reopened, the old one stays in use: {reason(error)}")
        for text in failures:
            self.error(text)
        if not failures:
            self.info("log files reopened")
        return failures

    def replace_sinks(self, other: Log) -> None:
        """Close the sinks, and take those of another log."""
        self.close()
        self.sinks, self.record_sinks = other.sinks, other.record_sinks

    def close(self) -> None:
        for sink in self._all_sinks():
            sink.close()

    def _all_sinks(self) -> list[Sink]:
        own = [] if self.record_sinks is self.sinks else self.record_sinks
        return [*self.sinks, *own]


def _stamped(record: Record) -> Record:
    return replace(record, time=time.time(), pid=os.getpid())


def _absent(sinks: Iterable[Sink]) -> list[str]:
    return [
        f"cannot log to {type(sink).__name__.lower()}: {sink.problem}"
        for sink in sinks
        if isinstance(sink, Socket) and sink.problem
    ]


def _opened(name: str, log_format: str, sockets: dict[str, str]) -> Sink:
    try:
        if name == "stderr":
            return StandardError(log_format)
        if name == "syslog":
            return Syslog(log_format, sockets[name])
        if name == "journal":
            return Journal(log_format, sockets[name])
        return File(log_format, name)
    except OSError as error:
        raise SuperdError(f"cannot log to {name}: {reason(error)}") from None
