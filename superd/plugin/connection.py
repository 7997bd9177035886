"""The interface through which a plugin serves a client's connection.

Used in the worker, which implements it. Raises ConnectionError if the client has disconnected,
LineTooLong if a line exceeds its limit, and ValueError if the plugin asks for less than a byte.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator

from superd.net.addresses import Address
from superd.observe.records import Level

DEFAULT_LINE_LIMIT = 64 * 1024  # bytes


class LineTooLong(ValueError):
    """A client sent more bytes without a line feed than the plugin allows."""


def check_limit(limit: int) -> None:
    """Raise ValueError for a limit below one byte, which is a mistake of the plugin."""
    if limit < 1:
        raise ValueError(f"expected a limit of at least 1 byte, found {limit}")


class Client(ABC):
    """A client: a stream connection, or all datagrams of one source.

    `id` is unique over the whole life of this superd, and is in each log line about the client.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def id(self) -> str: ...

    @property
    @abstractmethod
    def service(self) -> str:
        """Name of the service entry that the client reached."""

    @property
    @abstractmethod
    def local(self) -> Address:
        """The local address that the client connected to."""

    @property
    @abstractmethod
    def peer(self) -> Address:
        """The client's address; its path is empty for an unnamed unix socket."""

    @abstractmethod
    def log(self, level: Level, text: str) -> None:
        """Write a line with this connection's id to superd's log. Lines below `log-level` are
        dropped. Levels are "debug", "info", "warning" and "error"; others raise ValueError.
        """

    @abstractmethod
    def note(self, outcome: str) -> None:
        """Set how the connection ended, for its record: for instance a program's exit status."""


class AnyConnection(Client):
    """A stream connection: tcp, unix or unixpacket."""

    __slots__ = ()

    @abstractmethod
    def send_eof(self) -> None:
        """Shut down sending (shutdown(2)); reading is still possible."""

    @abstractmethod
    def close(self) -> None:
        """Close once all data sent has been delivered, even if the client's input was not read."""

    @abstractmethod
    def abort(self) -> None:
        """Close without delivering what is buffered; the client sees a reset."""


class Connection(AnyConnection):
    """The connection of a coroutine or a protocol, on the event loop."""

    __slots__ = ()

    @abstractmethod
    async def read(self, limit: int = 65536) -> bytes:
        """Return 1 to `limit` bytes as soon as they arrive; b"" at the end of input."""

    @abstractmethod
    async def readline(self, limit: int = DEFAULT_LINE_LIMIT) -> bytes:
        """Return a line with its line feed; at the end of input the rest, which may be b"".

        Raises LineTooLong after `limit` bytes without a line feed.
        """

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Send all of `data`; returns once few enough bytes are buffered to bound memory."""

    def given_to(self, program: int) -> None:
        """Say that a program with this process ID has the socket from now on, for a takeover. The
        plugin leaves its own socket open: superd closes that once neither the program nor a process
        that it has started has the socket, so that no answer is lost.
        """
        raise RuntimeError("only a plugin that takes the socket over can give it to a program")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over lines, each with its line feed."""
        while line := await self.readline():
            yield line


class BlockingConnection(AnyConnection):
    """The connection of a blocking handler, in a thread or process of its own.

    The time-outs are the entry's. After one has expired, reading returns the end of input, and
    sending raises.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def socket(self) -> socket.socket:
        """The blocking socket, for libraries that need one. Bytes that `read` and `readline` have
        buffered cannot be read from it.
        """

    @abstractmethod
    def read(self, limit: int = 65536) -> bytes:
        """Return 1 to `limit` bytes as soon as they arrive; b"" at the end of input."""

    @abstractmethod
    def readline(self, limit: int = DEFAULT_LINE_LIMIT) -> bytes:
        """Return a line with its line feed; at the end of input the rest, which may be b"".

        Raises LineTooLong after `limit` bytes without a line feed.
        """

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Send all of `data`; blocks while the client does not read."""

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over lines, each with its line feed."""
        while line := self.readline():
            yield line
