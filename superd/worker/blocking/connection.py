"""A connection as a blocking handler has it, and the result of the handler.

Runs in a thread of the worker, or in a process that the worker forked; never on the loop. Raises
ConnectionError where the client has closed or reset the connection, or a time-out has cut it.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from superd.net.addresses import Address, Transport
from superd.net.closing import reset_on_close
from superd.observe.records import Level, Record, cut, failure, kind_of
from superd.plugin.connection import (
    DEFAULT_LINE_LIMIT,
    BlockingConnection,
    LineTooLong,
    check_limit,
)
from superd.plugin.service import Unavailable

LINE_READ_SIZE = 64 * 1024  # bytes that readline reads at once


class TallyCell(enum.IntEnum):
    """The indices of a tally: memory that a handler's connection shares with its session."""

    RECEIVED = 0
    SENT = 1
    ENDED = 2  # by whom, as EndedBy
    RAW = 3  # 1 if the handler has used the socket itself, so that only the kernel can count


class EndedBy(enum.IntEnum):
    """Which side ended a connection first."""

    NEITHER = 0
    CLIENT = 1
    RESET = 2


TALLY_SIZE = len(TallyCell) * 8  # bytes


class ClientInfo(NamedTuple):
    """The client of a connection, in types that marshal can send to a process: `kind` is the value
    of its Transport, and `sockaddr` is what accept(2) returned.
    """

    id: str
    kind: str
    sockaddr: Any


class HandlerResult(NamedTuple):
    """How a handler ended: its outcome for the record, and its failure, if any.

    `kind` is the key of the failure for a FloodGate. `unavailable` is the text of an Unavailable,
    and `pause` its seconds. `is_spent` says that the process has no memory or descriptors left for
    another connection.
    """

    outcome: str = ""
    failure: Record | None = None
    kind: str = ""
    unavailable: str = ""
    pause: float = 0.0
    is_spent: bool = False


SUCCESS = HandlerResult()


class HandlerConnection(BlockingConnection):
    """Counts in `tally`, by TallyCell. `report` takes a log record; `on_abort` is called after
    `abort`, as the session has a copy of the socket.
    """

    __slots__ = (
        "_buffer", "_client", "_on_abort", "_report", "_service", "_sock", "_tally", "outcome",
    )  # fmt: skip

    def __init__(
        self,
        client: ClientInfo,
        service: str,
        sock: socket.socket,
        tally: memoryview,
        report: Callable[[Record], None],
        on_abort: Callable[[], object],
    ) -> None:
        self._client = client
        self._service = service
        self._sock = sock
        self._tally = tally
        self._report = report
        self._on_abort = on_abort
        self._buffer = b""
        self.outcome = ""

    @property
    def id(self) -> str:
        return self._client.id

    @property
    def service(self) -> str:
        return self._service

    @property
    def local(self) -> Address:
        return Address.from_sockaddr(Transport(self._client.kind), self._sock.getsockname())

    @property
    def peer(self) -> Address:
        return Address.from_sockaddr(Transport(self._client.kind), self._client.sockaddr)

    def log(self, level: Level, text: str) -> None:
        self._report(Record(level, text, self._service, self.id, self.peer.endpoint))

    def note(self, outcome: str) -> None:
        self.outcome = cut(str(outcome))

    @property
    def socket(self) -> socket.socket:
        self._tally[TallyCell.RAW] = 1
        return self._sock

    @property
    def is_broken(self) -> bool:
        """Whether the client has closed or reset the connection, or a time-out has cut it."""
        return self._tally[TallyCell.ENDED] == EndedBy.RESET

    def read(self, limit: int = 65536) -> bytes:
        check_limit(limit)
        if not self._buffer:
            return self._receive(limit)
        taken, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return taken

    def readline(self, limit: int = DEFAULT_LINE_LIMIT) -> bytes:
        check_limit(limit)
        buffer = self._buffer
        searched = 0
        while (end := buffer.find(b"\n", searched, limit) + 1) == 0:
            searched = len(buffer)
            if searched >= limit:
                self._buffer = buffer
                raise LineTooLong(f"a line of more than {limit} bytes")
            more = self._receive(LINE_READ_SIZE)
            if not more:
                end = len(buffer)
                break
            buffer += more
        self._buffer = buffer[end:]
        return buffer[:end]

    def _receive(self, limit: int) -> bytes:
        try:
            data = self._sock.recv(limit)
        except ConnectionError:
            self._ended(EndedBy.RESET)
            raise
        if not data:
            self._ended(EndedBy.CLIENT)
        self._tally[TallyCell.RECEIVED] += len(data)
        return data

    def send(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except ConnectionError:
            self._ended(EndedBy.RESET)
            raise
        self._tally[TallyCell.SENT] += len(data)

    def _ended(self, by: EndedBy) -> None:
        self._tally[TallyCell.ENDED] = self._tally[TallyCell.ENDED] or by

    def send_eof(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._ended(EndedBy.RESET)

    def close(self) -> None:
        """The worker delivers what was sent and closes once the handler has returned."""
        self.send_eof()

    def abort(self) -> None:
        self._ended(EndedBy.RESET)
        reset_on_close(self._sock)
        self._sock.close()
        self._on_abort()

    def close_socket(self) -> None:
        """Close the handler's own socket; the session has a copy."""
        self._sock.close()


def run_handler(
    handler: Callable[[BlockingConnection], object], conn: HandlerConnection, plugin: str
) -> HandlerResult:
    """Run a handler until it returns or raises."""
    try:
        handler(conn)
    except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
        try:
            return _failure(error, conn, plugin)
        except Exception:  # noqa: BLE001  the exception's class may raise while it is described
            text = f"plugin {plugin} failed: {type(error).__name__}"
            return HandlerResult(failure=Record("error", text, conn.service, conn.id), kind=text)
    return _success(conn)


def _success(conn: HandlerConnection) -> HandlerResult:
    return HandlerResult(conn.outcome) if conn.outcome else SUCCESS


def _failure(error: BaseException, conn: HandlerConnection, plugin: str) -> HandlerResult:
    if isinstance(error, Unavailable):
        return HandlerResult(unavailable=cut(str(error)), pause=float(error.pause))
    if conn.is_broken and isinstance(error, OSError):
        return _success(conn)
    what, peer = f"plugin {plugin} failed", conn.peer.endpoint
    record = failure(what, error, service=conn.service, connection=conn.id, peer=peer)
    is_spent = isinstance(error, MemoryError)
    return HandlerResult(conn.outcome, record, cut(str(kind_of(error))), is_spent=is_spent)
