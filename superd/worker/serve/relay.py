"""Clients whose bytes a plugin carries itself: superd books, times and records them. Here are those
of stream connections, and what those of datagrams have in common with them.

Runs in the worker, on the loop. What the plugin raises at the start costs this connection only.
Never raises.
"""

from __future__ import annotations

import socket

from superd.net.closing import reset_on_close
from superd.observe.connections import End
from superd.plugin.relay import Relay, Relayed
from superd.worker.serve.session import SLOTS, Session


class RelayingSession(Session, Relayed):
    """What clients have in common that a plugin has a relay for."""

    __slots__ = ()

    relay: Relay | None

    def progress(self) -> tuple[int, int]:
        if self.relay is not None:
            self.received, self.sent = self.relay.received, self.relay.sent
        return self.received, self.sent

    def reached(self, target: str, seconds: float) -> None:
        self.target = (target, seconds)

    def failed(self, error: BaseException) -> None:
        self.contain(error)

    def expire(self, end: End) -> None:
        self.end = self.end or end
        self.finish()

    def _cut(self) -> None:
        relay = self.relay
        self._let_go()  # first, as cutting may call back
        if relay is not None:
            relay.cut()

    def _let_go(self) -> None:
        """Let go of the relay, which has us: a circle would wait for the garbage collector."""
        self.progress()
        self.relay = None


class RelayedSession(RelayingSession):
    """A connection that a plugin has a relay for."""

    __slots__ = (*SLOTS, "relay", "sock")

    sock: socket.SocketType

    def give(self, sock: socket.SocketType) -> None:
        """Let the plugin have the socket; its calls are to say that they must not wait."""
        self.sock, self.relay = sock, None
        relay = self.worker_service.relay
        assert relay is not None
        try:
            self.relay = relay(sock, self)
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            self.contain(error)

    @property
    def is_lost(self) -> bool:
        return self.sock.fileno() < 0

    def raw_socket(self) -> socket.SocketType:
        return self.sock

    def ended(self, end: End) -> None:
        self.end = self.end or end
        self._let_go()
        self.leave()

    def abort(self) -> None:
        reset_on_close(self.sock)
        self.finish()

    def finish(self) -> None:
        self._cut()
        self.sock.close()
        self.leave()
