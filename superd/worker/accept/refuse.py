"""Closes connections that were refused: at once, after a banner, or after a while in the tarpit.

Runs in the worker, on the loop. Does as little as possible for each, since refused connections
often arrive in floods. Never raises.
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

# refused by a rule, not a limit: no tarpit; the address may be anyone's
BY_RULE = frozenset((Refusal.BANNED, Refusal.ACCESS, Refusal.TIMES))

SO_PEERGROUPS = 59  # the supplementary groups of a peer; Linux since 4.13
MAX_GROUPS = 256  # a peer with more is judged without its supplementary groups


def close_refused(
    context: Context, service: WorkerService, sock: socket.SocketType, refusal: Refusal, banner: str
) -> None:
    """Count a refusal, and close the connection as the entry says; `banner` may be empty."""
    service.counts[refusal_column(refusal)] += 1
    entry = service.entry
    if entry.on_limit == "tarpit" and refusal not in BY_RULE:
        context.tarpit.hold(sock)
    elif banner and refusal is not Refusal.BANNED:
        with contextlib.suppress(OSError):  # the client has closed
            sock.send(banner.encode(), SEND_WITH_END)
        context.lingering.finish(sock)
    else:
        sock.close()


def unix_peer(sock: socket.SocketType) -> UnixPeer:
    """Return the user and groups at the other end of a unix socket."""
    with contextlib.suppress(OSError, AttributeError):  # not every system provides them
        uid, gid = peer_ids(sock)
        groups = b""
        with contextlib.suppress(OSError):
            groups = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MAX_GROUPS)
        return UnixPeer(uid, (gid, *memoryview(groups).cast("I")))
    return NOBODY_KNOWN
