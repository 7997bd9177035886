"""Holds refused connections for a while without serving them.

Runs in the worker, on the loop. Takes no more than a part of the descriptors, so that the tarpit
never keeps another client from being served. Never raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket

HOLD_TIME = 60.0  # seconds that a connection is held
MAX_HELD = 1000  # connections; for one more, the oldest is closed
DESCRIPTOR_SHARE = 4  # at most every fourth descriptor of the process is for the tarpit
CHECK_INTERVAL = 1.0  # seconds between checks of which connections were held long enough
RECEIVE_BUFFER_SIZE = 2048  # bytes that the kernel may hold for a client in the tarpit


class Tarpit:
    """Connections that are held without being served, to keep their clients busy."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max = min(MAX_HELD, descriptors // DESCRIPTOR_SHARE)
        self._held: dict[socket.SocketType, float] = {}  # until when; the oldest first

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, sock: socket.SocketType) -> None:
        """Hold a connection; close the oldest if the tarpit is full."""
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_SIZE)
        if not self._held:
            self._loop.call_later(CHECK_INTERVAL, self._close_expired)
        elif len(self._held) >= self._max:
            self._close(next(iter(self._held)))
        self._held[sock] = self._loop.time() + HOLD_TIME

    def close_all(self) -> None:
        """Close every connection that is held."""
        for sock in list(self._held):
            self._close(sock)

    def _close(self, sock: socket.SocketType) -> None:
        del self._held[sock]
        sock.close()

    def _close_expired(self) -> None:
        now = self._loop.time()
        for sock in [sock for sock, end in self._held.items() if end <= now]:
            self._close(sock)
        if self._held:
            self._loop.call_later(CHECK_INTERVAL, self._close_expired)
