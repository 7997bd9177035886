"""Where log records end: standard error, a file, syslog. The sinks belong to the master.

Runs in the master. Never waits long for whoever reads a sink, and never lets one that fails stop
the service: what it does not take is dropped and counted, and the count follows once it takes
records again. Raises SuperdError where a sink cannot be opened at the start.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from superd.errors import SuperdError, reason
from superd.observe.records import Record, as_json, as_message, as_text

SYSLOG_SOCKET = "/dev/log"
STDERR = 2
PATIENCE = 100  # milliseconds that a reader who kept up until now may take
FILE_MODE = 0o640
_OPEN = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# syslog(3): facility "daemon", and the severities
_FACILITY = 3 << 3
_SEVERITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}


class Sink(ABC):
    """One place for log records. `lost` counts those it did not take since the last that it did."""

    lost = 0

    def __init__(self, log_format: str) -> None:
        self.is_json = log_format == "json"

    @abstractmethod
    def write(self, record: Record) -> None:
        """Write a record or raise OSError."""

    @abstractmethod
    def reopen(self) -> None:
        """Open the place anew or raise OSError, and go on with the old one."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the place."""


class Descriptor(Sink):
    """An open file, pipe, socket or terminal."""

    def __init__(self, log_format: str, descriptor: int) -> None:
        super().__init__(log_format)
        self.descriptor = descriptor
        self.is_torn = False

    def write(self, record: Record) -> None:
        text = as_json(record) if self.is_json else as_text(record)
        data = f"\n{text}\n".encode() if self.is_torn else f"{text}\n".encode()
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        while data:
            if not poll.poll(0 if self.lost else PATIENCE):
                raise BlockingIOError
            data = data[os.write(self.descriptor, data) :]
            self.is_torn = bool(data)

    def reopen(self) -> None:
        """There is nothing to be opened."""

    def close(self) -> None:
        if self.descriptor != STDERR:
            os.close(self.descriptor)


class StandardError(Descriptor):
    """Whatever standard error is.

    Who reads a pipe or a terminal can stop it, so it is opened once more to be written without
    blocking; setting the flag would set it for all who share it (open(2)). Where it cannot be
    opened, as a socket cannot, polling before each write has to do.
    """

    def __init__(self, log_format: str) -> None:
        descriptor = STDERR
        if stat.S_ISFIFO(os.fstat(STDERR).st_mode) or os.isatty(STDERR):
            with contextlib.suppress(OSError):
                descriptor = os.open(f"/proc/self/fd/{STDERR}", os.O_WRONLY | _OPEN)
        super().__init__(log_format, descriptor)


class File(Descriptor):
    """A file, or a named pipe, which has to have a reader."""

    def __init__(self, log_format: str, path: str) -> None:
        self.path = path
        super().__init__(log_format, self._opened())

    def _opened(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _OPEN, FILE_MODE)

    def reopen(self) -> None:
        descriptor = self._opened()
        self.close()
        self.descriptor, self.is_torn = descriptor, False


class Syslog(Sink):
    """The system's log, one datagram a line; connected anew after its daemon was restarted."""

    def __init__(self, log_format: str, path: str) -> None:
        super().__init__(log_format)
        self.path = path
        self.socket = self._connected()

    def _connected(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.connect(self.path)
        except OSError:
            sock.close()
            raise
        return sock

    def write(self, record: Record) -> None:
        text = as_json(record) if self.is_json else as_message(record)
        stamp = time.strftime("%b %e %H:%M:%S", time.localtime(record.time))
        start = f"<{_FACILITY | _SEVERITIES[record.level]}>{stamp} superd[{record.pid}]: "
        for line in text.split("\n"):
            data = f"{start}{line}".encode()
            try:
                self.socket.send(data)
            except BlockingIOError:
                raise
            except OSError:
                self.reopen()
                self.socket.send(data)

    def reopen(self) -> None:
        sock = self._connected()
        self.close()
        self.socket = sock

    def close(self) -> None:
        self.socket.close()


class Log:
    """Writes records to all sinks; `failures` counts those that one of them did not take."""

    def __init__(
        self, sinks: Sequence[str], log_format: str, syslog_socket: str = SYSLOG_SOCKET
    ) -> None:
        self.failures = 0
        self.sinks = [_opened(name, log_format, syslog_socket) for name in sinks]

    def write(self, record: Record) -> None:
        """Write a record; the master's own have no pid and no time yet."""
        record = record if record.time else _stamped(record)
        for sink in self.sinks:
            try:
                if sink.lost:
                    sink.write(_stamped(Record("warning", f"{sink.lost} log records were lost")))
                    sink.lost = 0
                sink.write(record)
            except OSError:
                sink.lost += 1
                self.failures += 1

    def info(self, message: str, service: str = "") -> None:
        self.write(Record("info", message, service=service))

    def warning(self, message: str, service: str = "") -> None:
        self.write(Record("warning", message, service=service))

    def error(self, message: str, service: str = "") -> None:
        self.write(Record("error", message, service=service))

    def reopen(self) -> None:
        """Open files anew, after they were renamed; one that cannot be is written on as it is."""
        for sink in self.sinks:
            try:
                sink.reopen()
            except OSError as error:
                self.error(f"the log stays where it was: {reason(error)}")

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


def _stamped(record: Record) -> Record:
    return replace(record, time=time.time(), pid=os.getpid())


def _opened(name: str, log_format: str, syslog_socket: str) -> Sink:
    try:
        if name == "stderr":
            return StandardError(log_format)
        if name == "syslog":
            return Syslog(log_format, syslog_socket)
        return File(log_format, name)
    except OSError as error:
        raise SuperdError(f"cannot log to {name}: {os.strerror(error.errno or 0)}") from None
