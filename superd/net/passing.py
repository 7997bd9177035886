"""Descriptors that one process passes to another over a unix socket (unix(7), SCM_RIGHTS).

For a service that is reached by name (RFC 1078) a pair of sockets stands for the listener: the
master makes it and keeps both ends, workers of the service have the one to take from, and those of
tcpmux services the other. Used in workers, which are handed files by the master, too, and in
processes that they fork. Raises OSError.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from typing import Any

PASSED = b"+"
CLOSED_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # not every system has it
ONE_DESCRIPTOR_BYTES = socket.CMSG_LEN(array.array("i").itemsize)


def rights_for(sock: socket.socket) -> list[tuple[int, int, array.array[int]]]:
    """Return what goes with a message so that the receiver has a copy of the socket."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]


def pass_socket(entrance: socket.socket, sock: socket.socket) -> None:
    """Pass a connection on; BlockingIOError where too many wait already."""
    entrance.sendmsg([PASSED], rights_for(sock), socket.MSG_DONTWAIT)


def accept_passed(way_out: socket.socket) -> tuple[int, Any]:
    """Return the descriptor of a connection and its peer's address, as accept(2) would.

    The kernel is asked who the peer is: who passes a connection on is not to be believed.
    """
    os.close(os.dup(way_out.fileno()))  # without a descriptor left it is to wait where it is
    data, control, *_ = way_out.recvmsg(
        1, ONE_DESCRIPTOR_BYTES, socket.MSG_DONTWAIT | CLOSED_ON_EXEC
    )
    if not data:
        raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
    passed = array.array("i", b"".join(rights for *_, rights in control))
    try:
        (descriptor,) = passed
        sock = socket.socket(fileno=descriptor)
        passed.pop()
    except (OSError, ValueError):
        raise _lost() from None
    finally:
        for number in passed:
            os.close(number)
    try:
        sockaddr = sock.getpeername()
    except OSError:
        sockaddr = None
    is_tcp = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
    if sockaddr is None or not is_tcp:
        sock.close()
        raise _lost()
    return sock.detach(), sockaddr


def receive(sock: socket.socket, size: int) -> tuple[bytes, int | None]:
    """Return a message, and the descriptor that came with it, if there is one and room for it."""
    data, control, *_ = sock.recvmsg(size, ONE_DESCRIPTOR_BYTES, CLOSED_ON_EXEC)
    passed = array.array("i", b"".join(rights for *_, rights in control))
    return data, passed[0] if passed else None


def _lost() -> OSError:
    return OSError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
