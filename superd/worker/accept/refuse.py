"""What becomes of a client that is not let in: rejected, perhaps with a banner, or held a while.

Runs in the worker, on the loop. Costs as little as can be, since many come at once. Never raises.
"""

from __future__ import annotations

import contextlib
import resource
import socket
from typing import TYPE_CHECKING

from superd.admission.access import UnixPeer
from superd.admission.refusals import Refusal
from superd.admission.rules import NOBODY_KNOWN
from superd.admission.scoreboard import refusal_column
from superd.net.credentials import ids_of_peer
from superd.worker.runtime.service import Serving
from superd.worker.serve.respond import WITH_THE_END

if TYPE_CHECKING:
    from superd.worker.engine import Engine

HOLD = 60.0  # seconds in the tarpit
MOST_HELD = 1000  # then the first of them is let go
PART = 4  # of all descriptors: at most every fourth is held
LOOK = 1.0
SMALLEST_BUFFER = 2048  # bytes that the kernel may hold for who is held

# who comes at all is not told why it is turned away, nor held: it may be anybody
BY_RULE = frozenset((Refusal.BANNED, Refusal.ACCESS, Refusal.TIMES))

SO_PEERGROUPS = 59  # its supplementary groups; Linux since 4.13
MOST_GROUPS = 256  # who has more is not known by any of them


def turn_away(
    engine: Engine, serving: Serving, sock: socket.SocketType, refusal: Refusal, banner: str
) -> None:
    """Count it, and end the connection as the entry says; `banner` is for who is told why."""
    serving.counts[refusal_column(refusal)] += 1
    entry = serving.entry
    if entry.on_limit == "tarpit" and refusal not in BY_RULE:
        engine.tarpit.hold(sock)
    elif banner and refusal is not Refusal.BANNED:
        with contextlib.suppress(OSError):  # the client has gone
            sock.send(banner.encode(), WITH_THE_END)
        engine.lingering.finish(sock)
    else:
        sock.close()


def unix_peer(sock: socket.SocketType) -> UnixPeer:
    """Return who is at the other end of a unix socket."""
    with contextlib.suppress(OSError, AttributeError):  # not every system tells
        uid, gid = ids_of_peer(sock)
        groups = b""
        with contextlib.suppress(OSError):
            groups = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MOST_GROUPS)
        return UnixPeer(uid, (gid, *memoryview(groups).cast("I")))
    return NOBODY_KNOWN


class Tarpit:
    """Connections that are held without being served, so that who makes them is kept busy. They
    never keep anybody from being served: only a part of the descriptors is for them.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._most = min(MOST_HELD, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // PART)
        self._held: dict[socket.SocketType, float] = {}  # until when, the first to be let go first

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, sock: socket.SocketType) -> None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALLEST_BUFFER)
        if not self._held:
            self.engine.loop.call_later(LOOK, self._look)
        elif len(self._held) >= self._most:
            self._let_go(next(iter(self._held)))
        self._held[sock] = self.engine.loop.time() + HOLD

    def let_all_go(self) -> None:
        for sock in list(self._held):
            self._let_go(sock)

    def _let_go(self, sock: socket.SocketType) -> None:
        del self._held[sock]
        sock.close()

    def _look(self) -> None:
        now = self.engine.loop.time()
        for sock in [sock for sock, end in self._held.items() if end <= now]:
            self._let_go(sock)
        if self._held:
            self.engine.loop.call_later(LOOK, self._look)
