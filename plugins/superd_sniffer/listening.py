"""A client that is listened to: greeted perhaps, heard for a while, kept perhaps, and let go."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from superd.plugin import Connection
from superd_sniffer.history import Knock

if TYPE_CHECKING:
    from superd_sniffer.service import Sniffer


class Listening(asyncio.Protocol):
    """One connection. It is told of once, when enough was heard, or no more comes."""

    def __init__(self, sniffer: Sniffer, conn: Connection) -> None:
        self.sniffer = sniffer
        self.conn = conn
        self.data = bytearray()
        self.timer: asyncio.TimerHandle | None = None
        self.is_told = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        options = self.sniffer.options
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.at = time.time()
        self.peer, self.local = self.conn.peer, self.conn.local
        if options.banner:
            transport.write(options.banner.encode())
        # not from in here: uvloop begins to read only after this, and could not be told to pause
        seconds = options.capture.time if options.capture else 0.0
        self.timer = self.sniffer.loop.call_later(seconds, self._enough)

    def data_received(self, data: bytes) -> None:
        capture = self.sniffer.options.capture
        if capture is not None and not self.is_told:
            self.data += data[: capture.bytes - len(self.data)]
            if len(self.data) >= capture.bytes:
                self._enough()

    def eof_received(self) -> None:
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self._tell()

    def _enough(self) -> None:
        """Listen no more; keep the client for a while, or let it go."""
        self._tell()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if tarpit := self.sniffer.options.tarpit:
            self.transport.pause_reading()
            self.timer = self.sniffer.loop.call_later(tarpit, self.transport.close)
        else:
            self.transport.close()

    def _tell(self) -> None:
        if not self.is_told:
            self.is_told = True
            heard = bytes(self.data)
            self.sniffer.heard(Knock(self.conn, self.at, self.peer, self.local, heard))
