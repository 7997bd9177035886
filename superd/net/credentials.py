"""Who is at the other end of a unix socket, as the kernel noted it when they connected.

Runs in workers and the resolver. Asks the kernel only. Raises OSError, and AttributeError where the
system has no such question.
"""

from __future__ import annotations

import socket
import struct

_CREDENTIALS = struct.Struct("@iII")  # struct ucred: pid, uid, gid (unix(7))


def ids_of_peer(sock: socket.SocketType) -> tuple[int, int]:
    """Return the uid and the gid of the process that connected (SO_PEERCRED, unix(7))."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, gid = _CREDENTIALS.unpack(credentials)
    return uid, gid
