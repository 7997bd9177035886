"""Closing a connection: what is unread or undelivered, and whether close(2) sends a reset.

Used by workers, and by the master for bytes that a worker has not read. Never raises: the peer may
have closed already.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
from typing import Any

LINGER = struct.Struct("ii")  # struct linger (socket(7))
RESET_ON_CLOSE = LINGER.pack(1, 0)  # on, for 0 seconds
CLOSE_AT_ONCE = LINGER.pack(0, 0)


def undelivered(sock: Any) -> int:
    """Return how many sent bytes the peer has not taken; 0 if unknown (TIOCOUTQ, tcp(7)).

    A tcp peer takes bytes when it acknowledges them, a unix one when it reads them.
    """
    return _queued(sock, termios.TIOCOUTQ)


def unread(sock: Any) -> int:
    """Return how many received bytes have not been read; 0 if unknown (FIONREAD, tcp(7))."""
    return _queued(sock, termios.FIONREAD)


def _queued(sock: Any, request: int) -> int:
    queued = bytearray(4)
    try:
        fcntl.ioctl(sock.fileno(), request, queued)
    except OSError:
        return 0
    return int.from_bytes(queued, sys.byteorder)


def reset_on_close(sock: Any) -> None:
    """Make close(2) send a reset, so that the peer can tell an abort (SO_LINGER, socket(7))."""
    try:  # noqa: SIM105  suppress() takes longer than the call itself
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    except OSError:
        pass


def never_block_on_close(sock: Any) -> bool:
    """Have close(2) return at once, whatever a program has set; return whether it will send a
    reset, as the program has asked for (SO_LINGER, socket(7)).
    """
    try:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER.size) == RESET_ON_CLOSE:
            return True
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE_AT_ONCE)
    except OSError:
        pass
    return False
