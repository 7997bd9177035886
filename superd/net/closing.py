"""How a connection is closed, beyond close(2).

Runs in the worker; the master asks what a worker has not taken. Never raises: the other side may
have gone.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
from typing import Any

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def undelivered(sock: Any) -> int:
    """Return how many bytes the kernel holds that the other side has not taken (tcp(7))."""
    queued = bytearray(4)
    try:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, queued)
    except OSError:
        return 0
    return int.from_bytes(queued, sys.byteorder)


def reset_on_close(sock: Any) -> None:
    """Make closing the socket send a reset, so that the other side sees the break (socket(7))."""
    try:  # noqa: SIM105  suppress() takes longer than the call itself
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    except OSError:
        pass
