"""Who is at the other end of a unix socket, as the kernel noted it when they connected or listened.

Runs in every process but services' own. Asks the kernel only. Raises OSError, and AttributeError
where the system has no such question.
"""

from __future__ import annotations

import socket
import struct

_CREDENTIALS = struct.Struct("@iII")  # struct ucred: pid, uid, gid (unix(7))


def peer_ids(sock: socket.SocketType) -> tuple[int, int]:
    """Return the uid and the gid of the process that connected (SO_PEERCRED, unix(7))."""
    _, uid, gid = _credentials_of_peer(sock)
    return uid, gid


def peer_pid(sock: socket.SocketType) -> int:
    """Return the process that has connected, or listened; 0 where it cannot be seen from here."""
    return _credentials_of_peer(sock)[0]


def _credentials_of_peer(sock: socket.SocketType) -> tuple[int, int, int]:
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(credentials)
    return pid, uid, gid
