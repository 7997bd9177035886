"""The state that all forwarded connections of a service share in one worker.

Runs on the loop.
"""

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
from superd_forward.targets import TargetAddress, Targets, TargetsByPort
from superd_forward.timers import Timers
from superd_forward.title import Title

# seconds between checks of all connections in that state
CONNECTING_INTERVAL = 0.05
HALF_CLOSED_INTERVAL = 0.25
RESETTING_INTERVAL = 0.005
IP_BIND_ADDRESS_NO_PORT = 24  # ip(7): connections to different targets may share a port


class Connecting(Protocol):
    """A connection that is being connected: the methods that timers call."""

    def check(self, now: float) -> None: ...


class Ending(Protocol):
    """A connection with one side ended or reset: the methods that timers call."""

    def reset_once_read(self) -> None: ...

    def check_half_close(self) -> None: ...


class Context:
    """The targets, the settings and the connections.

    `header` makes the PROXY header that precedes a client's bytes, from its address and ours.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        targets: Targets | TargetsByPort,
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
        self.connections: dict[object, None] = {}  # also sources of datagrams
        self.title = Title(loop, lambda: self.connections)
        self.connecting: Timers[Connecting] = Timers(
            loop, CONNECTING_INTERVAL, lambda connecting: connecting.check(time.monotonic())
        )
        self.resetting: Timers[Ending] = Timers(
            loop, RESETTING_INTERVAL, lambda relay: relay.reset_once_read()
        )
        self.half_closed: Timers[Ending] = Timers(
            loop, HALF_CLOSED_INTERVAL, lambda relay: relay.check_half_close()
        )

    def connect(self, address: TargetAddress) -> socket.SocketType:
        """Return a non-blocking socket that is connecting. Raises OSError."""
        sock = socket.SocketType(address.family, address.kind, 0)
        try:
            if address.is_tcp:
                if self.nodelay:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.keepalive:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self.bind_to and not address.is_unix:
                with contextlib.suppress(OSError):  # older kernels lack it
                    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((self.bind_to, 0))
            elif address.is_unix:
                sock.bind(
                    ""
                )  # an abstract name: replies need one, and so does loop detection (unix(7))
            error = sock.connect_ex(address.sockaddr)
            if error and error != errno.EINPROGRESS:
                raise OSError(error, os.strerror(error))
        except BaseException:
            sock.close()
            raise
        return sock
