"""Connections whose raw socket a plugin takes over.

Runs in the worker, on the loop. Closes the socket when the plugin has returned. Never raises.
"""

from __future__ import annotations

import socket

from superd.plugin.connection import LONGEST_LINE, Connection
from superd.worker.session import SLOTS, Session, reset_on_close


class TakenSession(Session, Connection):
    """A connection that superd only books; the plugin reads and writes the socket itself."""

    __slots__ = (*SLOTS, "sock")

    sock: socket.socket | None

    def give(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        takeover = self.serving.takeover
        assert takeover is not None
        self.run(takeover(sock, self))

    def raw_socket(self) -> socket.socket | None:
        return self.sock

    @property
    def is_lost(self) -> bool:
        return self.sock is None

    def finish(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def expire(self) -> None:
        self.finish()
        if self.task is not None:
            self.task.cancel()

    def abort(self) -> None:
        if self.sock is not None and self.sock.fileno() >= 0:
            reset_on_close(self.sock)
        self.finish()

    def close(self) -> None:
        self.finish()

    async def read(self, limit: int = 65536) -> bytes:
        raise RuntimeError(_OWN)

    async def readline(self, limit: int = LONGEST_LINE) -> bytes:
        raise RuntimeError(_OWN)

    async def send(self, data: bytes) -> None:
        raise RuntimeError(_OWN)

    def send_eof(self) -> None:
        raise RuntimeError(_OWN)


_OWN = "the plugin has taken over the socket; it reads and writes there"
