"""The credentials of a unix socket's peer, recorded by the kernel at connect(2) or listen(2).

Used by the master, workers, the resolver and the command line. Raises OSError, and AttributeError
on a system without SO_PEERCRED.
"""

from __future__ import annotations

import socket
import struct

_CREDENTIALS = struct.Struct("@iII")  # struct ucred: pid, uid, gid (unix(7))


def peer_ids(sock: socket.SocketType) -> tuple[int, int]:
    """Return the uid and the gid of the peer process (SO_PEERCRED, unix(7))."""
    _, uid, gid = _credentials_of_peer(sock)
    return uid, gid


def peer_pid(sock: socket.SocketType) -> int:
    """Return the pid of the peer process; 0 if it is outside this pid namespace."""
    return _credentials_of_peer(sock)[0]


def _credentials_of_peer(sock: socket.SocketType) -> tuple[int, int, int]:
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(credentials)
    return pid, uid, gid
