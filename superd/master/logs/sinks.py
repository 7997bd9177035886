"""The sinks of log records and events: standard error, files, syslog, the journal.

Runs in the master, which owns the sinks. Never blocks for long on a slow reader. Raises OSError if
a sink does not take a line.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from superd.observe import connections
from superd.observe.records import Record, as_json, as_message, as_text, as_xinetd, escaped

SYSLOG_SOCKET = "/dev/log"
JOURNAL_SOCKET = "/run/systemd/journal/socket"
STDERR = 2
SINK_WRITE_TIMEOUT = 0.1  # seconds for a reader that kept up so far; none for one that lost lines
FILE_MODE = 0o640
_OPEN = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# syslog(3): facility "daemon", and the severities
_FACILITY = 3 << 3
_SEVERITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}

# longer names for keys of events, since all programs share the journal's fields
_FIELDS = {
    "conn": "CONNECTION", "duration": "DURATION_USEC", "connect": "CONNECT_USEC",
    "in": "BYTES_IN", "out": "BYTES_OUT",
}  # fmt: skip
_SECONDS = {"duration", "connect"}  # written to the journal in microseconds


class Unwritten(OSError):
    """A sink did not take the last `lines` of a batch."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.lines = lines


class Sink(ABC):
    """One destination of log lines, in one form: "text", "json" or "xinetd".

    `lost` counts the lines that it did not take since the last one that it took.
    """

    lost = 0

    def __init__(self, log_format: str) -> None:
        self.form = log_format

    @abstractmethod
    def write(self, record: Record) -> None:
        """Write a record; OSError if it is not taken."""

    @abstractmethod
    def write_events(self, batch: bytes) -> None:
        """Write lines of connections.ConnectionLog; Unwritten if some are not taken."""

    @abstractmethod
    def reopen(self) -> None:
        """Open the destination again; OSError if this fails, and the old one stays in use."""

    @abstractmethod
    def close(self) -> None:
        """Close the destination."""


class Descriptor(Sink):
    """An open file, pipe, socket or terminal."""

    def __init__(self, log_format: str, descriptor: int) -> None:
        super().__init__(log_format)
        self.descriptor = descriptor
        self.is_torn = False

    def write(self, record: Record) -> None:
        forms = {"text": as_text, "json": as_json, "xinetd": as_xinetd}
        self._write(f"{forms[self.form](record)}\n".encode())

    def write_events(self, batch: bytes) -> None:
        if self.form != "json":
            form = connections.FORMS[self.form]
            events = map(connections.parsed, batch.splitlines())
            batch = "".join(f"{form(event)}\n" for event in events).encode()
        self._write(batch)

    def _write(self, lines: bytes) -> None:
        data = b"\n" + lines if self.is_torn else lines
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        end = time.monotonic() + (0 if self.lost else SINK_WRITE_TIMEOUT)
        try:
            while data:
                if not poll.poll(max(0, (end - time.monotonic()) * 1000)):
                    raise BlockingIOError
                written = os.write(self.descriptor, data)
                self.is_torn = not data[:written].endswith(b"\n")
                data = data[written:]
        except OSError:
            raise Unwritten(min(data.count(b"\n"), lines.count(b"\n"))) from None

    def reopen(self) -> None:
        """Do nothing: only files and sockets can be opened again."""

    def close(self) -> None:
        if self.descriptor != STDERR:
            os.close(self.descriptor)


class StandardError(Descriptor):
    """Standard error: a file, pipe, terminal or socket.

    The reader of a pipe or a terminal can block it, so superd opens it a second time, without
    blocking: setting O_NONBLOCK would set it for all processes that share the open file (open(2)).
    A socket cannot be opened again; there, superd relies on polling before each write.
    """

    def __init__(self, log_format: str) -> None:
        descriptor = STDERR
        if stat.S_ISFIFO(os.fstat(STDERR).st_mode) or os.isatty(STDERR):
            with contextlib.suppress(OSError):
                descriptor = os.open(f"/proc/self/fd/{STDERR}", os.O_WRONLY | _OPEN)
        super().__init__(log_format, descriptor)


class File(Descriptor):
    """A file, or a named pipe, which must have a reader."""

    def __init__(self, log_format: str, path: str) -> None:
        self.path = path
        super().__init__(log_format, self._opened())

    def _opened(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _OPEN, FILE_MODE)

    def reopen(self) -> None:
        descriptor = self._opened()
        self.close()
        self.descriptor, self.is_torn = descriptor, False


class Socket(Sink):
    """A daemon that receives datagrams. The socket is connected once the daemon runs, and again
    after its restart. `problem` is why it was not connected at first; "" if it was.
    """

    def __init__(self, log_format: str, path: str) -> None:
        super().__init__(log_format)
        self.path = path
        self.problem = ""
        try:
            self.socket = self._connected()
        except OSError as error:
            self.problem = f"{os.strerror(error.errno or 0)}: {path}"
            self.socket = _unconnected()

    def write_events(self, batch: bytes) -> None:
        lines = batch.splitlines()
        for number, line in enumerate(lines):
            try:
                self._write_event(line)
            except OSError:
                raise Unwritten(len(lines) - number) from None

    @abstractmethod
    def _write_event(self, line: bytes) -> None:
        """Send one event; OSError if it is not taken."""

    def _send(self, data: bytes) -> None:
        try:
            self.socket.send(data)
        except BlockingIOError:
            raise
        except OSError:
            self.reopen()
            self.socket.send(data)

    def _connected(self) -> socket.socket:
        sock = _unconnected()
        try:
            sock.connect(self.path)
        except OSError:
            sock.close()
            raise
        return sock

    def reopen(self) -> None:
        sock = self._connected()
        self.close()
        self.socket = sock

    def close(self) -> None:
        self.socket.close()


def _unconnected() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.setblocking(False)
    return sock


class Syslog(Socket):
    """The system's log, one datagram a line. In xinetd's form events have xinetd's name, for
    programs that search the log for it.
    """

    def write(self, record: Record) -> None:
        text = as_json(record) if self.form == "json" else as_message(record)
        for line in text.split("\n"):
            self._log(record.level, record.time, record.pid, line)

    def _write_event(self, line: bytes) -> None:
        event = connections.parsed(line)
        if self.form == "xinetd":
            text = connections.xinetd_message_of(event)
            self._log("info", event["time"], event["pid"], text, "xinetd")
        else:
            text = line.decode() if self.form == "json" else connections.message_of(event)
            self._log("info", event["time"], event["pid"], text)

    def _log(self, level: str, moment: float, pid: int, line: str, name: str = "superd") -> None:
        stamp = time.strftime("%b %e %H:%M:%S", time.localtime(moment))
        self._send(f"<{_FACILITY | _SEVERITIES[level]}>{stamp} {name}[{pid}]: {line}".encode())


class Journal(Socket):
    """systemd's journal, by its native protocol: each record is a datagram of fields, which
    `journalctl SUPERD_SERVICE=echo` can find.
    """

    def write(self, record: Record) -> None:
        self._log(
            record.level,
            record.pid,
            "\n".join(map(escaped, (record.message, *record.detail))),
            {"service": record.service, "conn": record.connection, "peer": record.peer},
        )

    def _write_event(self, line: bytes) -> None:
        event = connections.parsed(line)
        fields = {key: value for key, value in event.items() if key not in ("time", "pid", "facts")}
        for key in _SECONDS & fields.keys():
            fields[key] = round(fields[key] * 1e6)
        facts = {key.replace("-", "_"): value for key, value in event.get("facts", {}).items()}
        self._log("info", event["pid"], connections.message_of(event), facts | fields)

    def _log(self, level: str, pid: int, message: str, fields: Mapping[str, Any]) -> None:
        all_fields = {
            "MESSAGE": message,
            "PRIORITY": _SEVERITIES[level],
            "SYSLOG_IDENTIFIER": "superd",
            "SYSLOG_PID": pid,
            **{
                f"SUPERD_{_FIELDS.get(key, key.upper())}": value
                for key, value in fields.items()
                if value != ""
            },
        }
        self._send(b"".join(_field(key, str(value)) for key, value in all_fields.items()))


def _field(key: str, value: str) -> bytes:
    """Return a field in the journal's form; a value of several lines has its length before it."""
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return b"%s=%s\n" % (key.encode(), data)
    return b"%s\n%s%s\n" % (key.encode(), len(data).to_bytes(8, "little"), data)
