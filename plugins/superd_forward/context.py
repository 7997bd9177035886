"""What all forwarded connections of a service in one worker share."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable
from typing import Protocol

from superd.plugin import Address, Poller
from superd_forward.memory import Memory
from superd_forward.targets import Targets, Way
from superd_forward.timers import Timers
from superd_forward.title import Title

# seconds between looks at all connections in that state
CONNECTING_INTERVAL = 0.05
HALF_CLOSED_INTERVAL = 0.25
BREAKING_INTERVAL = 0.005
IP_BIND_ADDRESS_NO_PORT = 24  # ip(7): ports of different targets may be the same


class Connecting(Protocol):
    """An attempt to connect, as the timers call it."""

    def look(self, now: float) -> None: ...


class Ending(Protocol):
    """A connection that has ended on one side, as the timers call it."""

    def reset_once_read(self) -> None: ...

    def look_if_half_closed_too_long(self) -> None: ...


class Context:
    """The sockets, the targets and the settings; `header` makes what precedes a client's bytes."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        targets: Targets,
        look_up: Callable[[str, Callable[[tuple[str, ...]], None]], None],
        *,
        nodelay: bool,
        keepalive: bool,
        bind_to: str,
        connect_timeout: float,
        half_close_timeout: float,
        header: Callable[[Address, Address], bytes] | None,
    ) -> None:
        self.loop = loop
        self.poller = poller
        self.memory = Memory(loop, poller)
        self.targets = targets
        self.look_up = look_up
        self.nodelay = nodelay
        self.keepalive = keepalive
        self.bind_to = bind_to
        self.connect_timeout = connect_timeout
        self.half_close_timeout = half_close_timeout
        self.header = header
        self.connections: dict[object, None] = {}  # and sources of datagrams
        self.title = Title(loop, lambda: self.connections)
        self.connecting: Timers[Connecting] = Timers(
            loop, CONNECTING_INTERVAL, lambda connecting: connecting.look(time.monotonic())
        )
        self.breaking: Timers[Ending] = Timers(
            loop, BREAKING_INTERVAL, lambda relay: relay.reset_once_read()
        )
        self.half_closed: Timers[Ending] = Timers(
            loop, HALF_CLOSED_INTERVAL, lambda relay: relay.look_if_half_closed_too_long()
        )

    def connect(self, way: Way) -> socket.SocketType:
        """Return a socket that is being connected. Raises OSError."""
        sock = socket.SocketType(way.family, way.kind, 0)
        try:
            if way.is_tcp:
                if self.nodelay:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.keepalive:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self.bind_to and not way.is_unix:
                with contextlib.suppress(OSError):  # an old kernel does without
                    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((self.bind_to, 0))
            elif way.is_unix:
                sock.bind("")  # an abstract name, to be answered at, or known by (unix(7))
            error = sock.connect_ex(way.sockaddr)
            if error and error != errno.EINPROGRESS:
                raise OSError(error, os.strerror(error))
        except BaseException:
            sock.close()
            raise
        return sock
