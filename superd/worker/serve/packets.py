"""A transport for unixpacket (SOCK_SEQPACKET): each write is one packet, and so is each read.

Runs in the worker, on the loop; asyncio's own transports support streams only. Calls the protocol's
`connection_lost` as any transport does. Raises ValueError for a packet that is too long.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque

from superd.worker.runtime.scratch import SCRATCH, SCRATCH_SIZE

HIGH_WATER = 64 * 1024  # bytes of unsent packets; above this, writing is paused


class PacketTransport(asyncio.Transport):
    """Carries packets between a socket and an asyncio protocol.

    An empty packet means end of file. A packet that is too long breaks the connection, since a part
    of a packet has no meaning.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, protocol: asyncio.Protocol
    ) -> None:
        super().__init__({"socket": sock})
        self._loop = loop
        self._sock = sock
        self._protocol = protocol
        self._unsent: deque[bytes] = deque()
        self._size = 0
        self._high = HIGH_WATER
        self._is_paused = False
        self._is_reading = False
        self._has_eof = False
        self._is_closing = False
        # so that any packet that can be received can be sent as well
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SCRATCH_SIZE)
        self.resume_reading()
        protocol.connection_made(self)

    def _readable(self) -> None:
        try:
            # with MSG_TRUNC the kernel returns the whole size of a packet that did not fit
            size = self._sock.recv_into(SCRATCH, 0, socket.MSG_TRUNC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        if size > SCRATCH_SIZE:
            self._lose(OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE)))
        elif size:
            self._protocol.data_received(SCRATCH[:size].tobytes())
        else:
            self.pause_reading()
            if not self._protocol.eof_received():
                self.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closing or self._has_eof or not data:
            return
        if len(data) > SCRATCH_SIZE:
            raise ValueError(f"a packet has at most {SCRATCH_SIZE} bytes, not {len(data)}")
        if not self._unsent and self._send(bytes(data)):
            return
        if not self._unsent:
            self._loop.add_writer(self._sock, self._writable)
        self._unsent.append(bytes(data))
        self._size += len(data)
        if self._size > self._high and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_writing()

    def _send(self, packet: bytes) -> bool:
        try:
            self._sock.send(packet)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._lose(error)
        return True

    def _writable(self) -> None:
        while self._unsent and self._send(self._unsent[0]):
            if self._is_lost:
                return
            self._size -= len(self._unsent.popleft())
        if not self._unsent:
            self._loop.remove_writer(self._sock)
            if self._has_eof:
                self._shutdown()
            if self._is_closing:
                self._lose(None)
        if self._is_paused and self._size <= self._high // 4:
            self._is_paused = False
            self._protocol.resume_writing()

    def write_eof(self) -> None:
        if not self._has_eof:
            self._has_eof = True
            if not self._unsent:
                self._shutdown()

    def can_write_eof(self) -> bool:
        return True

    def _shutdown(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._lose(error)

    def pause_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._sock)

    def resume_reading(self) -> None:
        if not self._is_reading and not self._is_closing:
            self._is_reading = True
            self._loop.add_reader(self._sock, self._readable)

    def is_reading(self) -> bool:
        return self._is_reading

    def is_closing(self) -> bool:
        return self._is_closing

    def get_write_buffer_size(self) -> int:
        return self._size

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER if high is None else high

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def close(self) -> None:
        if not self._is_closing:
            self.pause_reading()
            self._is_closing = True
            if not self._unsent:
                self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        self._lose(None)

    @property
    def _is_lost(self) -> bool:
        return self._sock.fileno() < 0

    def _lose(self, error: Exception | None) -> None:
        if self._is_lost:
            return
        self.pause_reading()
        self._loop.remove_writer(self._sock)
        self._is_closing = True
        self._unsent.clear()
        self._size = 0
        self._sock.close()
        self._loop.call_soon(self._protocol.connection_lost, error)
