"""What becomes of a client that is not let in: rejected, perhaps with a banner, or held a while.

Runs in the worker, on the loop. Costs as little as can be, since many come at once. Never raises.
"""

from __future__ import annotations

import contextlib
import socket

from superd.admission.access import UnixPeer
from superd.admission.refusals import Refusal
from superd.admission.rules import NOBODY_KNOWN
from superd.admission.scoreboard import refusal_column
from superd.net.credentials import peer_ids
from superd.worker.runtime.context import Context
from superd.worker.runtime.linger import SEND_WITH_END
from superd.worker.runtime.service import WorkerService

# who comes at all is not told why it is turned away, nor held: it may be anybody
BY_RULE = frozenset((Refusal.BANNED, Refusal.ACCESS, Refusal.TIMES))

SO_PEERGROUPS = 59  # its supplementary groups; Linux since 4.13
MOST_GROUPS = 256  # who has more is not known by any of them


def turn_away(
    context: Context, service: WorkerService, sock: socket.SocketType, refusal: Refusal, banner: str
) -> None:
    """Count it, and end the connection as the entry says; `banner` is for who is told why."""
    service.counts[refusal_column(refusal)] += 1
    entry = service.entry
    if entry.on_limit == "tarpit" and refusal not in BY_RULE:
        context.tarpit.hold(sock)
    elif banner and refusal is not Refusal.BANNED:
        with contextlib.suppress(OSError):  # the client has gone
            sock.send(banner.encode(), SEND_WITH_END)
        context.lingering.finish(sock)
    else:
        sock.close()


def unix_peer(sock: socket.SocketType) -> UnixPeer:
    """Return who is at the other end of a unix socket."""
    with contextlib.suppress(OSError, AttributeError):  # not every system tells
        uid, gid = peer_ids(sock)
        groups = b""
        with contextlib.suppress(OSError):
            groups = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MOST_GROUPS)
        return UnixPeer(uid, (gid, *memoryview(groups).cast("I")))
    return NOBODY_KNOWN
