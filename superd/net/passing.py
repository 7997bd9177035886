"""Passing descriptors from one process to another over a unix socket (unix(7), SCM_RIGHTS).

A tcpmux:// service (RFC 1078) has a socket pair for a listener. The master makes it and keeps both
ends. Workers of the tcpmux plugin send connections into its entrance, and workers of the service
receive them from the other end.

Used by workers and the processes that they fork; workers receive files from the master, too.
Raises OSError.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from typing import Any

PAYLOAD = b"+"  # a message must hold at least one byte to carry a descriptor
CLOSED_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # missing on some systems
ONE_DESCRIPTOR_BYTES = socket.CMSG_LEN(array.array("i").itemsize)
MAX_DESCRIPTORS = 200  # in one message; the kernel allows a few more (unix(7))
_ALL_DESCRIPTORS_BYTES = socket.CMSG_LEN(MAX_DESCRIPTORS * array.array("i").itemsize)


def rights_for(sock: socket.socket) -> list[tuple[int, int, array.array[int]]]:
    """Return the ancillary data that gives the receiver a copy of the socket."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]


def pass_socket(entrance: socket.socket, sock: socket.socket) -> None:
    """Pass a connection to the service. BlockingIOError if its queue is full."""
    entrance.sendmsg([PAYLOAD], rights_for(sock), socket.MSG_DONTWAIT)


def accept_passed(receiver: socket.socket) -> tuple[int, Any]:
    """Return the descriptor of a connection and its peer's address, as accept(2) would.

    The peer's address comes from the kernel, as the sending worker is not trusted.
    """
    os.close(os.dup(receiver.fileno()))  # fails at EMFILE, and the connection stays queued
    data, control, *_ = receiver.recvmsg(
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
        raise _aborted() from None
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
        raise _aborted()
    return sock.detach(), sockaddr


def receive(sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Return a message and the descriptors that it carries, except those for which none is free."""
    data, control, *_ = sock.recvmsg(size, _ALL_DESCRIPTORS_BYTES, CLOSED_ON_EXEC)
    return data, array.array("i", b"".join(rights for *_, rights in control)).tolist()


def _aborted() -> OSError:
    return OSError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
