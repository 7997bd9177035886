"""Connections whose bytes a plugin relays itself, while superd counts, times and records them. Has
stream connections, and what flows of datagrams have in common with them.

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
    """What stream connections and flows with a relay have in common."""

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
        self._drop_relay()  # first, as cutting may call back
        if relay is not None:
            relay.cut()

    def _drop_relay(self) -> None:
        """Drop the relay, which refers to us: a cycle would wait for the garbage collector."""
        self.progress()
        self.relay = None


class RelayedSession(RelayingSession):
    """A stream connection for which a plugin has a relay."""

    __slots__ = (*SLOTS, "relay", "sock")

    sock: socket.SocketType

    def start(self, sock: socket.SocketType) -> None:
        """Give the plugin the socket, which may block: its calls have to pass MSG_DONTWAIT."""
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
        self._drop_relay()
        self.leave()

    def abort(self) -> None:
        reset_on_close(self.sock)
        self.finish()

    def finish(self) -> None:
        self._cut()
        self.sock.close()
        self.leave()
