"""One client's connection, as a plugin sees it.

Used in the worker. Says what a plugin may rely on; the worker supplies it. Raises ConnectionError
where the client has gone, LineTooLong where it sends a line without end, and ValueError where the
plugin asks for less than a byte.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator

from superd.net.addresses import Address
from superd.observe.records import Level

LONGEST_LINE = 64 * 1024


class LineTooLong(ValueError):
    """A client sent more bytes without a line feed than the plugin takes."""


def check_limit(limit: int) -> None:
    """Raise ValueError for a limit that nothing could keep: that is no mistake of the client."""
    if limit < 1:
        raise ValueError(f"a limit is at least 1, found {limit}")


class Client(ABC):
    """Who is served: a stream connection, or all datagrams of one source.

    `id` is unique among all connections of this superd's life and stands in its log lines.
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
        """Which of our addresses the client reached, on a multi-homed host."""

    @property
    @abstractmethod
    def peer(self) -> Address:
        """The client's address; its path is empty for an unnamed unix socket."""

    @abstractmethod
    def log(self, level: Level, text: str) -> None:
        """Write a line to superd's log, with this connection's id: "debug", "info", "warning",
        "error"; ValueError for another level. What is less severe than `log-level` is left out.
        """

    @abstractmethod
    def note(self, outcome: str) -> None:
        """Say for the record how it ended, such as a program's exit status."""


class AnyConnection(Client):
    """A stream connection: tcp, unix or unixpacket."""

    __slots__ = ()

    @abstractmethod
    def send_eof(self) -> None:
        """Say that nothing more will be sent (shutdown(2)); reading goes on."""

    @abstractmethod
    def close(self) -> None:
        """Deliver what was sent, then close. Never loses an answer to unread input."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once; the client sees a reset."""


class Connection(AnyConnection):
    """What coroutines and protocols have, on the event loop."""

    __slots__ = ()

    @abstractmethod
    async def read(self, limit: int = 65536) -> bytes:
        """Return 1 to `limit` bytes as soon as they come; b"" once the client sends no more."""

    @abstractmethod
    async def readline(self, limit: int = LONGEST_LINE) -> bytes:
        """Return a line with its line feed; what is left, perhaps b"", at the end of input.

        Raises LineTooLong after `limit` bytes without a line feed.
        """

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Send all of `data`; returns when so much has been taken that memory stays bounded."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over lines, each with its line feed."""
        while line := await self.readline():
            yield line


class BlockingConnection(AnyConnection):
    """What a blocking handler has, in a thread or process of its own.

    Time-outs are the entry's: when one is over, reading finds the end and sending raises.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def socket(self) -> socket.socket:
        """The blocking socket itself, for libraries that want one. What `read` and `readline` have
        taken in advance is not to be found there.
        """

    @abstractmethod
    def read(self, limit: int = 65536) -> bytes:
        """Return 1 to `limit` bytes as soon as they come; b"" once the client sends no more."""

    @abstractmethod
    def readline(self, limit: int = LONGEST_LINE) -> bytes:
        """Return a line with its line feed; what is left, perhaps b"", at the end of input.

        Raises LineTooLong after `limit` bytes without a line feed.
        """

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Send all of `data`; waits while the client takes nothing."""

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over lines, each with its line feed."""
        while line := self.readline():
            yield line
