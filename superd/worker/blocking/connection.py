"""A connection as a blocking handler has it, and what is told of how the handler ended.

Runs in a thread of the worker, or in a process that the worker forked; never on the loop. Raises
ConnectionError where the client has gone, or its time was over.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from superd.net.addresses import Address, Transport
from superd.net.closing import reset_on_close
from superd.observe.records import Level, Record, cut, failure, kind_of
from superd.plugin.connection import LONGEST_LINE, BlockingConnection, LineTooLong, check_limit
from superd.plugin.service import Unavailable

PORTION = 64 * 1024  # bytes that are read at once where a line is looked for


class Cell(enum.IntEnum):
    """What a talk counts, in memory that it shares with the session that booked it."""

    RECEIVED = 0
    SENT = 1
    ENDED = 2  # who ended it, as By says
    RAW = 3  # whether the handler has had the socket itself, so that the kernel is to count


class By(enum.IntEnum):
    """Who ended a talk first."""

    NOBODY = 0
    CLIENT = 1
    RESET = 2


CELLS = len(Cell)


class Caller(NamedTuple):
    """Who is talked to, in what a process can be sent (marshal): `kind` is Transport's value, and
    `sockaddr` what accept(2) told.
    """

    id: str
    kind: str
    sockaddr: Any


class Account(NamedTuple):
    """How a handler ended: what it said for the record, and what went wrong, if anything.

    `kind` is what its failure has in common with others, for a FloodGate; `pause` comes with
    `unavailable`. `is_spent` says that who ran it has no memory or descriptors left for others.
    """

    outcome: str = ""
    failure: Record | None = None
    kind: str = ""
    unavailable: str = ""
    pause: float = 0.0
    is_spent: bool = False


ALL_WELL = Account()


class HandlerConnection(BlockingConnection):
    """Counts in `tally`, by Cell; `say` takes a log record, `tell_aborted` is called after `abort`,
    for who has a copy of the socket.
    """

    __slots__ = (
        "_buffer", "_caller", "_say", "_service", "_sock", "_tally", "_tell_aborted", "outcome",
    )  # fmt: skip

    def __init__(
        self,
        caller: Caller,
        service: str,
        sock: socket.socket,
        tally: memoryview,
        say: Callable[[Record], None],
        tell_aborted: Callable[[], object],
    ) -> None:
        self._caller = caller
        self._service = service
        self._sock = sock
        self._tally = tally
        self._say = say
        self._tell_aborted = tell_aborted
        self._buffer = b""
        self.outcome = ""

    @property
    def id(self) -> str:
        return self._caller.id

    @property
    def service(self) -> str:
        return self._service

    @property
    def local(self) -> Address:
        return Address.from_sockaddr(Transport(self._caller.kind), self._sock.getsockname())

    @property
    def peer(self) -> Address:
        return Address.from_sockaddr(Transport(self._caller.kind), self._caller.sockaddr)

    def log(self, level: Level, text: str) -> None:
        self._say(Record(level, text, self._service, self.id, self.peer.endpoint))

    def note(self, outcome: str) -> None:
        self.outcome = cut(str(outcome))

    @property
    def socket(self) -> socket.socket:
        self._tally[Cell.RAW] = 1
        return self._sock

    @property
    def is_broken(self) -> bool:
        """Whether the client has gone, or its time was over."""
        return self._tally[Cell.ENDED] == By.RESET

    def read(self, limit: int = 65536) -> bytes:
        check_limit(limit)
        if not self._buffer:
            return self._received(limit)
        taken, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return taken

    def readline(self, limit: int = LONGEST_LINE) -> bytes:
        check_limit(limit)
        buffer = self._buffer
        searched = 0
        while (end := buffer.find(b"\n", searched, limit) + 1) == 0:
            searched = len(buffer)
            if searched >= limit:
                self._buffer = buffer
                raise LineTooLong(f"a line of more than {limit} bytes")
            more = self._received(PORTION)
            if not more:
                end = len(buffer)
                break
            buffer += more
        self._buffer = buffer[end:]
        return buffer[:end]

    def _received(self, limit: int) -> bytes:
        try:
            data = self._sock.recv(limit)
        except ConnectionError:
            self._ended(By.RESET)
            raise
        if not data:
            self._ended(By.CLIENT)
        self._tally[Cell.RECEIVED] += len(data)
        return data

    def send(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except ConnectionError:
            self._ended(By.RESET)
            raise
        self._tally[Cell.SENT] += len(data)

    def _ended(self, by: By) -> None:
        self._tally[Cell.ENDED] = self._tally[Cell.ENDED] or by

    def send_eof(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._ended(By.RESET)

    def close(self) -> None:
        """The worker delivers what was sent and closes once the handler has returned."""
        self.send_eof()

    def abort(self) -> None:
        self._ended(By.RESET)
        reset_on_close(self._sock)
        self._sock.close()
        self._tell_aborted()

    def let_go(self) -> None:
        """Close the handler's own socket; its session has another, or a copy."""
        self._sock.close()


def account_of(
    handler: Callable[[BlockingConnection], object], talk: HandlerConnection, plugin: str
) -> Account:
    """Run a handler to its end, whatever that is."""
    try:
        handler(talk)
    except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
        try:
            return _account_of_error(error, talk, plugin)
        except Exception:  # noqa: BLE001  its class may raise when it is asked what it is
            text = f"plugin {plugin} failed: {type(error).__name__}"
            return Account(failure=Record("error", text, talk.service, talk.id), kind=text)
    return _good_account(talk)


def _good_account(talk: HandlerConnection) -> Account:
    return Account(talk.outcome) if talk.outcome else ALL_WELL


def _account_of_error(error: BaseException, talk: HandlerConnection, plugin: str) -> Account:
    if isinstance(error, Unavailable):
        return Account(unavailable=cut(str(error)), pause=float(error.pause))
    if talk.is_broken and isinstance(error, OSError):
        return _good_account(talk)
    what, peer = f"plugin {plugin} failed", talk.peer.endpoint
    record = failure(what, error, service=talk.service, connection=talk.id, peer=peer)
    is_spent = isinstance(error, MemoryError)
    return Account(talk.outcome, record, cut(str(kind_of(error))), is_spent=is_spent)
