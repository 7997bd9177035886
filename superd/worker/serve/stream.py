"""A connection served by an asyncio protocol, or by a coroutine, over an asyncio transport.

Runs in the worker, on the loop, between the transport and the plugin's protocol: counts bytes,
contains what the plugin raises, and closes without losing an answer. Never raises.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any, cast

from superd.net.addresses import Transport
from superd.net.closing import reset_on_close, undelivered
from superd.observe.connections import End
from superd.plugin.connection import DEFAULT_LINE_LIMIT, Connection
from superd.worker.runtime.linger import LINGER_TIMEOUT, STALLED_CLIENT_TIMEOUT
from superd.worker.runtime.scratch import SCRATCH
from superd.worker.serve.buffer import ReadBuffer
from superd.worker.serve.packets import PacketTransport
from superd.worker.serve.session import SLOTS, Session

CHUNK_SIZE = 64 * 1024  # bytes that are read at once from a client that may not be reading
# bytes; a client that has sent more reads its answers, as the kernels' buffers hold less
READING_CLIENT_BYTES = 16 << 20

_CHUNK = SCRATCH[:CHUNK_SIZE]


class ProtocolSession(Session, Connection, asyncio.Transport, asyncio.Protocol):
    """The transport for the plugin, and the protocol for the loop."""

    __slots__ = (*SLOTS, "_has_eof", "_is_finishing", "_inner", "_timer", "_transport", "_write")

    _transport: asyncio.Transport | None
    _inner: asyncio.Protocol | None
    _timer: asyncio.TimerHandle | None

    async def attach(self, sock: socket.socket, inner: asyncio.Protocol | None = None) -> None:
        """Give the accepted socket to the loop, which then calls `connection_made`.

        `inner` is used instead of a protocol that the plugin makes.
        """
        self._transport = self._timer = None
        self._inner = inner
        self._has_eof = self._is_finishing = False
        try:
            sock.setblocking(False)
            if self.transport_kind is Transport.UNIXPACKET:
                PacketTransport(self.context.loop, sock, self)
            else:
                await self.context.loop.connect_accepted_socket(lambda: self, sock)
        except OSError:
            sock.close()
            self.leave()

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = stream = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._write = stream.write
        stream.set_write_buffer_limits(0)  # pause writing as soon as the kernel's buffer is full
        if self._is_finishing:
            stream.abort()  # it was expired before it began
            return
        service = self.worker_service
        try:
            if self._inner is not None:
                self._inner.connection_made(self)
            elif service.protocol is not None:
                self._inner = _checked(service.protocol(self))
                self._inner.connection_made(self)
            elif service.stream is not None:
                self._inner = ReadBuffer(self)
                self.run(service.stream(self))
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            self.contain(error)

    def data_received(self, data: bytes) -> None:
        size = len(data)
        self.received += size
        if size > CHUNK_SIZE and self.received < READING_CLIENT_BYTES:
            self._read_in_chunks()
        if self._is_finishing:
            return  # lingering: input is only read so that close(2) sends no reset
        try:
            self._inner.data_received(data)  # type: ignore[union-attr]  # set when it was made
        except BaseException as error:  # noqa: BLE001
            self.contain(error)

    def eof_received(self) -> bool:
        self._has_eof = True
        if not self._is_finishing:
            self.end = self.end or End.CLIENT
        transport = self._transport
        assert transport is not None
        if self._is_finishing:
            transport.close()
            return True
        try:
            keep_open = self._inner is not None and self._inner.eof_received()
        except BaseException as error:  # noqa: BLE001
            self.contain(error)
        else:
            if not keep_open:
                self.close()
        return True

    def _read_in_chunks(self) -> None:
        if self._transport is not None and self.transport_kind is not Transport.UNIXPACKET:
            self._transport.set_protocol(ChunkedReader(self))

    def read_in_full(self) -> None:
        transport = self._transport
        if transport is not None:
            transport.set_protocol(self)
            if transport.get_write_buffer_limits() == (0, 0):  # the plugin has set none
                transport.set_write_buffer_limits(CHUNK_SIZE)

    def pause_writing(self) -> None:
        self._notify("pause_writing")

    def resume_writing(self) -> None:
        self._notify("resume_writing")

    def _notify(self, what: str) -> None:
        if self._inner is not None and not self._is_finishing:
            try:
                getattr(self._inner, what)()
            except BaseException as error:  # noqa: BLE001
                self.contain(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if exc is not None:
            self.end = self.end or End.RESET
        self._write = _discard  # the transport's own method would keep the transport alive
        if self._timer is not None:
            self._timer.cancel()
        try:
            if self._inner is not None:
                self._inner.connection_lost(exc)
        except BaseException as error:  # noqa: BLE001
            self.contain(error)
        self._inner = None if self.task is None else self._inner
        if self.task is None:
            self.leave()

    # What the plugin's protocol calls: asyncio.Transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += len(data)
        self._write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        if self._transport is not None and not self._is_finishing:
            self._transport.write_eof()

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self._is_finishing or self._transport is None

    def pause_reading(self) -> None:
        transport = self._transport
        if transport is not None and not self._is_finishing and transport.is_reading():
            transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._has_eof:
            self._transport.resume_reading()

    def is_reading(self) -> bool:
        return self._transport is not None and self._transport.is_reading()

    def get_write_buffer_size(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._transport is not None:
            self._transport.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if self._transport is None:
            return default
        return self._transport.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._inner is not None
        return self._inner

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._inner = protocol

    def close(self) -> None:
        """Deliver what was written and shut down, then linger: unread input would cause a reset."""
        transport = self._transport
        if self._is_finishing or transport is None:
            return
        self._is_finishing = True
        self._write = _discard
        if self._has_eof:
            transport.close()
        else:
            try:
                transport.write_eof()
            except OSError:  # the client has closed
                transport.abort()
            transport.resume_reading()
        if not (self._has_eof and transport.get_write_buffer_size() == 0):
            self._linger(transport.get_write_buffer_size(), time_left=STALLED_CLIENT_TIMEOUT)

    def _linger(self, unsent: int, time_left: float) -> None:
        wait = LINGER_TIMEOUT
        self._timer = self.context.loop.call_later(wait, self._lingered, unsent, time_left - wait)

    def _lingered(self, before: int, time_left: float) -> None:
        transport = self._transport
        assert transport is not None  # the timer ends with it
        unsent = transport.get_write_buffer_size()
        unsent += undelivered(transport.get_extra_info("socket"))
        if before == unsent == 0 or time_left <= 0:
            self._cut(transport)
        else:
            self._linger(unsent, time_left if unsent == before else STALLED_CLIENT_TIMEOUT)

    def _cut(self, transport: asyncio.Transport) -> None:
        """Close at once; with a reset if unsent output is lost."""
        if transport.get_write_buffer_size():
            reset_on_close(transport.get_extra_info("socket"))
        transport.abort()

    def abort(self) -> None:
        if self._transport is not None:
            reset_on_close(self._transport.get_extra_info("socket"))
            self._is_finishing = True
            self._transport.abort()

    # What the worker calls

    @property
    def is_lost(self) -> bool:
        return self._transport is None

    def raw_socket(self) -> Any:
        return self.get_extra_info("socket")

    def finish(self) -> None:
        self.close()

    def expire(self, end: End) -> None:
        self.end = self.end or end
        self._is_finishing = True
        if self._transport is not None:
            self._cut(self._transport)
        if self.task is not None:
            self.task.cancel()

    # What a coroutine of the plugin calls: Connection

    async def read(self, limit: int = 65536) -> bytes:
        return await self._read_buffer.read(limit)

    async def readline(self, limit: int = DEFAULT_LINE_LIMIT) -> bytes:
        return await self._read_buffer.readline(limit)

    async def send(self, data: bytes) -> None:
        if self.is_closing():
            raise ConnectionResetError("the connection is closed")
        self.write(data)
        await self._read_buffer.drained()

    def send_eof(self) -> None:
        self.write_eof()

    @property
    def _read_buffer(self) -> ReadBuffer:
        if not isinstance(self._inner, ReadBuffer):
            raise RuntimeError("a protocol gets its input by data_received, and cannot await it")
        return self._inner


class ChunkedReader(asyncio.BufferedProtocol):
    """Reads in chunks for a session whose client sends a lot and may not be reading.

    Loops read up to 256 KiB at once, which the session has to hold if its client does not read the
    answer. That is faster by a fifth, so a client that has proved to be reading gets it.
    """

    __slots__ = ("session",)

    def __init__(self, session: ProtocolSession) -> None:
        self.session = session

    def get_buffer(self, sizehint: int) -> memoryview:
        return _CHUNK

    def buffer_updated(self, nbytes: int) -> None:
        self.session.data_received(_CHUNK[:nbytes].tobytes())
        if self.session.received >= READING_CLIENT_BYTES:
            self.session.read_in_full()

    def eof_received(self) -> bool:
        return self.session.eof_received()

    def pause_writing(self) -> None:
        self.session.pause_writing()

    def resume_writing(self) -> None:
        self.session.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.session.connection_lost(exc)


def advance(attaching: Coroutine[asyncio.Future[object], None, None], _: object = None) -> None:
    """Run `attach` until it awaits, and continue once that is done.

    A task would do the same, but making one takes a tenth of the time of a short connection.
    """
    try:
        awaited = attaching.send(None)
    except StopIteration:
        return
    awaited.add_done_callback(partial(advance, attaching))


def _discard(data: bytes | bytearray | memoryview) -> None:
    """Discard what is written to a lost connection, or after it was closed."""


def _checked(protocol: object) -> asyncio.Protocol:
    if not isinstance(protocol, asyncio.Protocol):
        raise TypeError(f"protocol() returned {protocol!r}, which is not an asyncio.Protocol")
    return protocol
