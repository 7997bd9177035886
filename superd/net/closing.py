"""Closing a connection: what is still undelivered, and how to close with a reset.

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

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, for 0 seconds


def undelivered(sock: Any) -> int:
    """Return how many sent bytes the peer has not taken; 0 if unknown (TIOCOUTQ, tcp(7)).

    A tcp peer takes bytes when it acknowledges them, a unix one when it reads them.
    """
    queued = bytearray(4)
    try:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, queued)
    except OSError:
        return 0
    return int.from_bytes(queued, sys.byteorder)


def reset_on_close(sock: Any) -> None:
    """Make close(2) send a reset, so that the peer can tell an abort (SO_LINGER, socket(7))."""
    try:  # noqa: SIM105  suppress() takes longer than the call itself
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    except OSError:
        pass
