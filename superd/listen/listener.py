"""A listener: one bound socket of one service, with its repair.

Used by the master and the command line. `superd.listen.listeners` opens the sockets. Never accepts
a connection or reads a datagram. `start` and `repair` raise OSError.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from dataclasses import dataclass

from superd.config.model import Service
from superd.listen.binding import unlink_own
from superd.listen.failures import Failure
from superd.net.addresses import ANY_IPV6, Address, Transport

Entrance = socket.socket
SO_MEMINFO = 55  # Linux; the socket module has no name for it


@dataclass
class Listener:
    """One bound socket of one service.

    `configured` is the address in its entry, where port 0 means any free port. `address` has the
    port that was bound.
    """

    service: str
    entry: Service
    configured: Address
    address: Address
    socket: socket.socket
    shares_port: bool = False  # with another listener of superd at another local address
    file: tuple[int, int] | None = None  # device and inode of a unix socket's file
    entrance: Entrance | None = None  # where workers of tcpmux send connections for the service
    backlog: int = 0  # in force; the kernel may lower that of the entry
    is_external: bool = False  # from a socket unit, which owns it and its file
    failure: Failure | None = None  # of a pending address: why it could not be bound yet

    @property
    def takes_ipv4(self) -> bool:
        """Whether an IPv6 socket accepts IPv4, too; one that superd has bound never does."""
        if self.is_closed or self.address.host != ANY_IPV6:
            return False
        return not self.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)

    @property
    def is_closed(self) -> bool:
        """Whether the address is pending, or the socket was beyond repair."""
        return self.socket.fileno() < 0

    def close(self) -> None:
        """Close the socket, and remove its file if that is still the one superd made."""
        if self.file is not None:
            if not self.is_closed:  # a reload may have closed it by its copy of this listener
                unlink_own(self.address.path, self.file)
            self.file = None
        self.socket.close()
        if self.entrance is not None:
            self.entrance.close()

    def start(self) -> None:
        """Start to listen; a datagram socket receives from bind(2) on."""
        if not self.address.transport.is_datagram and self.entrance is None:
            self.socket.listen(self.entry.backlog)
            self.backlog = self._backlog_in_force()

    def repair(self) -> str | None:
        """Undo a worker's damage to the shared socket; return what was wrong, None if nothing.

        Raises OSError if the socket is beyond repair and has to be reopened.
        """
        done = None
        if self.entrance is not None:
            if _is_shut_down(self.socket) or _is_shut_down(self.entrance):
                raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
            return None
        is_blocking = not fcntl.fcntl(self.socket, fcntl.F_GETFL) & os.O_NONBLOCK
        # a program with the socket may want it blocking; workers read datagrams with MSG_DONTWAIT
        may_block = self.entry.wait or self.address.transport.is_datagram
        if is_blocking and not may_block:
            self.socket.setblocking(False)
            done = "was made blocking"
        if self.address.transport is not Transport.TCP:
            if _is_shut_down(self.socket) or _is_connected(self.socket):
                raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
            if self.address.transport.is_datagram:
                return done
        elif not self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            done = "was shut down"
        elif self._backlog_in_force() < self.backlog:
            done = "had its backlog reduced"
        if done or self.address.transport.is_unix:
            self.socket.listen(self.entry.backlog)
        if done and self.address.port and self.socket.getsockname()[1] != self.address.port:
            # shutdown(2) releases a port that the kernel chose, and listen(2) chooses another
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        return done

    def _backlog_in_force(self) -> int:
        """Return tcpi_sacked, the backlog of a listening socket (tcp(7)); 0 for unix sockets."""
        if self.address.transport.is_unix:
            return 0
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        return int(struct.unpack_from("@I", info, 28)[0])


def dropped_datagrams(sock: socket.socket) -> int:
    """Return how many datagrams were dropped as the buffer was full (sock_diag(7), SK_MEMINFO)."""
    return int(struct.unpack("@9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[-1])


def _is_shut_down(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
