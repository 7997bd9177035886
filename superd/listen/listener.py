"""A listener: one bound socket of one service, and what keeps it in order.

Used by the master and the command line. Opens nothing; superd.listen.listeners does. Never accepts
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
from superd.net.addresses import ANY_IPV6, Address, Transport

Entrance = socket.socket
SO_MEMINFO = 55  # Linux; the socket module has no name for it


@dataclass
class Listener:
    """One bound socket of one service. `asked` is what its entry says, where 0 is any free port;
    `address` has the port that was really bound.
    """

    service: str
    entry: Service
    configured: Address
    address: Address
    socket: socket.socket
    shares_port: bool = False  # with a listener of ours at another local address
    file: tuple[int, int] | None = None  # device and inode of a unix socket's file
    entrance: Entrance | None = None  # where connections are put in that tcpmux passes on
    backlog: int = 0  # what the kernel made of the entry's
    is_external: bool = False  # it belongs to who started superd, and so does its file

    @property
    def takes_ipv4(self) -> bool:
        """Whether it serves IPv4, too, as none does that superd has bound to [::]."""
        if self.is_closed or self.address.host != ANY_IPV6:
            return False
        return not self.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)

    @property
    def is_closed(self) -> bool:
        """Whether it was past mending, and nobody has made it anew yet."""
        return self.socket.fileno() < 0

    def close(self) -> None:
        """Remove the socket's file where it is still ours, and close the socket."""
        if self.file is not None:
            if not self.is_closed:  # by the copy that a reload has of it
                unlink_own(self.address.path, self.file)
            self.file = None
        self.socket.close()
        if self.entrance is not None:
            self.entrance.close()

    def start(self) -> None:
        """Let clients in; datagrams have been coming since the socket was bound."""
        if not self.address.transport.is_datagram and self.entrance is None:
            self.socket.listen(self.entry.backlog)
            self.backlog = self._backlog_in_force()

    def repair(self) -> str | None:
        """Undo what a worker may have done to the shared socket; return what it was.

        Raises OSError where the socket cannot be mended and has to be made anew.
        """
        done = None
        if self.entrance is not None:
            if _is_shut_down(self.socket) or _is_shut_down(self.entrance):
                raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
            return None
        is_blocking = not fcntl.fcntl(self.socket, fcntl.F_GETFL) & os.O_NONBLOCK
        # a program that has it may well want it so; who reads datagrams here does not wait anyway
        is_others = self.entry.wait or self.address.transport.is_datagram
        if is_blocking and not is_others:
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
            done = "had its backlog taken away"
        if done or self.address.transport.is_unix:
            self.socket.listen(self.entry.backlog)
        if done and self.address.port and self.socket.getsockname()[1] != self.address.port:
            # shutdown(2) lets go of a port that the kernel had chosen, and listen(2) takes another
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        return done

    def _backlog_in_force(self) -> int:
        """Return what tcpi_sacked is for a listening socket (tcp(7)); unix sockets do not tell."""
        if self.address.transport.is_unix:
            return 0
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        return int(struct.unpack_from("@I", info, 28)[0])


def dropped_datagrams(sock: socket.socket) -> int:
    """Return how many datagrams found the buffer of a socket full (sock_diag(7), SK_MEMINFO)."""
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
