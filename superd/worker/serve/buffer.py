"""The read buffer of a coroutine: input that was received and not yet read.

Runs in the worker, on the loop. Holds what the loop has read at once, or one line, and stops
reading until the coroutine has taken it. Raises LineTooLong, and ConnectionResetError where the
connection broke before the end of the input.
"""

from __future__ import annotations

import asyncio

from superd.plugin.connection import LineTooLong, check_limit

HIGH_WATER = 16 * 1024  # bytes; with more in the buffer, the transport stops reading


class ReadBuffer(asyncio.Protocol):
    """Turns the calls of a transport into awaitable reads; one reader at a time."""

    __slots__ = ("_buffer", "_has_eof", "_is_paused", "_lost", "_reader", "_transport", "_writer")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._buffer = bytearray()
        self._has_eof = False
        self._is_paused = False
        self._lost: BaseException | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > HIGH_WATER:
            self._transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> bool:
        self._has_eof = True
        _wake(self._reader)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = exc or ConnectionResetError("the connection is closed")
        _wake(self._reader)
        _wake(self._writer)

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        _wake(self._writer)

    async def read(self, limit: int) -> bytes:
        check_limit(limit)
        while not self._buffer and not self._has_eof:
            await self._more()
        return self._take(limit)

    async def readline(self, limit: int) -> bytes:
        check_limit(limit)
        searched = 0
        while True:
            at = self._buffer.find(b"\n", searched, limit)
            if at >= 0:
                return self._take(at + 1)
            if len(self._buffer) >= limit:
                raise LineTooLong(f"a line of more than {limit} bytes")
            if self._has_eof:
                return self._take(limit)
            searched = len(self._buffer)
            await self._more()

    async def drained(self) -> None:
        """Wait until the transport accepts more; several coroutines may wait."""
        while self._is_paused and self._lost is None:
            if self._writer is None or self._writer.done():
                self._writer = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._writer,))  # not cancelled with one that waits
        if self._lost is not None:
            raise ConnectionResetError("the client has closed the connection") from self._lost

    async def _more(self) -> None:
        if self._reader is not None and not self._reader.done():
            raise RuntimeError("another coroutine reads from this connection already")
        if self._lost is not None:
            raise ConnectionResetError("the client has closed the connection") from self._lost
        self._transport.resume_reading()
        self._reader = asyncio.get_running_loop().create_future()
        await self._reader

    def _take(self, limit: int) -> bytes:
        taken = bytes(self._buffer[:limit])
        del self._buffer[:limit]
        return taken


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
