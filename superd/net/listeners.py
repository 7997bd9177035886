"""Listening sockets: bound all at once, watched, repaired, and unlinked by their owner only.

Runs in the master. Never accepts a connection or reads a datagram. Raises AddressInUse,
NotPermitted or SuperdError, with one line for each address that could not be bound.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from superd.config.model import Service
from superd.errors import AddressInUse, NotPermitted, SuperdError, reason
from superd.net.addresses import ANY_IPV6, Address, Transport
from superd.net.pktinfo import ask_for_destination

# Linux; socket has no names for these before 3.12 or 3.14
IP_FREEBIND = 15
IPV6_FREEBIND = 78
SO_MEMINFO = 55

# An accept that another process made blocking gives up after this (SO_RCVTIMEO): seconds, us.
ACCEPT_TIMEOUT = struct.pack("@ll", 0, 10_000)
DATAGRAM_BUFFER = 1 << 20
UNIX_MODE = 0o666  # as systemd has it: who may connect is for the entry to say


@dataclass
class Listener:
    """One bound socket of one service. `address` has the port that was really bound."""

    service: str
    entry: Service
    address: Address
    socket: socket.socket
    shares_port: bool = False  # with a listener of ours at another local address
    file: tuple[int, int] | None = None  # device and inode of a unix socket's file
    backlog: int = 0  # what the kernel made of the entry's

    def close(self) -> None:
        """Remove the socket's file where it is still ours, and close the socket.

        In this order: while the socket is open, no other file can get its inode.
        """
        if self.file is not None:
            with contextlib.suppress(OSError):
                if _identity(self.address.path) == self.file:
                    os.unlink(self.address.path)
            self.file = None
        self.socket.close()

    def start(self) -> None:
        """Let clients in; datagrams have been coming since the socket was bound."""
        if not self.address.transport.is_datagram:
            self.socket.listen(self.entry.backlog)
            self.backlog = self._backlog_in_force()

    def repair(self) -> str | None:
        """Undo what a worker may have done to the shared socket; return what it was.

        Raises OSError where the socket cannot be mended and has to be made anew.
        """
        done = None
        if not fcntl.fcntl(self.socket, fcntl.F_GETFL) & os.O_NONBLOCK:
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


def listen(services: Mapping[str, Service]) -> list[Listener]:
    """Bind every address of every service, or none; then listen.

    Services may share a port on different local addresses: Linux takes a specific address beside
    the wildcard only with SO_REUSEPORT on both. That option would also let another superd of the
    same user join in silence, so such addresses are tried without it first.
    """
    wanted = [
        (name, service, address)
        for name, service in services.items()
        for listed in service.listen
        for address in _sockets_of(listed)
    ]
    shared = _shared(address for *_, address in wanted)
    found: list[Listener] = []
    failures: list[SuperdError] = []

    for name, service, address in wanted:
        if address in shared:
            with _gathering(failures, name, service, address):
                _bound(service, address, share=False).close()
    if failures:
        # all that is in the way is to be told at once; what was tried has been told
        wanted = [one for one in wanted if one[2] not in shared]
    for name, service, address in wanted:
        with _gathering(failures, name, service, address):
            found.append(_listener(name, service, address, share=address in shared))
    for listener in found if not failures else ():
        with _gathering(failures, listener.service, listener.entry, listener.address):
            listener.start()
    if failures:
        for listener in found:
            listener.close()
        raise type(failures[0])("\n".join(str(failure) for failure in failures))
    return found


def renew(closed: Listener) -> Listener:
    """Return a new listener on the address of one that was closed, since it was past mending.

    Raises OSError; as long as a worker holds the old socket, the address is in use.
    """
    listener = _listener(closed.service, closed.entry, closed.address, share=closed.shares_port)
    listener.start()
    return listener


def dropped(sock: socket.socket) -> int:
    """Return how many datagrams found the buffer of a socket full (sock_diag(7), SK_MEMINFO)."""
    return int(struct.unpack("@9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[-1])


def _sockets_of(address: Address) -> tuple[Address, ...]:
    """Return one address a socket: "*" is IPv4, and IPv6 where this machine has it."""
    if address.host != "*" or _has_ipv6():
        return address.expanded()
    return address.expanded()[:1]


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind((ANY_IPV6, 0))
    except OSError:
        return False
    return True


def _shared(addresses: Iterable[Address]) -> set[Address]:
    """Return the addresses that share a port with the wildcard of their kind."""
    ends: dict[object, list[Address]] = {}
    for address in addresses:
        if address.port and not address.transport.is_unix:
            end = (address.transport, address.family, address.port)
            ends.setdefault(end, []).append(address)
    return {
        address
        for group in ends.values()
        if len(group) > 1 and any(member.is_wildcard for member in group)
        for address in group
    }


def _listener(name: str, service: Service, address: Address, *, share: bool) -> Listener:
    sock = _bound(service, address, share=share)
    if address.transport.is_unix:
        file = None if address.path.startswith("@") else _identity(address.path)
        listener = Listener(name, service, address, sock, file=file)
        # at once: a file where nobody listens is taken for one that was left behind
        listener.start()
        return listener
    address = replace(address, port=sock.getsockname()[1])
    return Listener(name, service, address, sock, shares_port=share)


def _bound(service: Service, address: Address, *, share: bool) -> socket.socket:
    kind = address.transport
    sock = socket.socket(address.family, kind.socket_type)
    try:
        sock.setblocking(False)
        if kind.is_unix:
            _bind_unix(sock, address)
        else:
            _set_internet_options(sock, address, service)
            if share:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(address.sockaddr)
        if kind.is_datagram:
            # a unix datagram waits in its sender's buffer: ours bounds the answers
            which = socket.SO_SNDBUF if kind.is_unix else socket.SO_RCVBUF
            sock.setsockopt(socket.SOL_SOCKET, which, DATAGRAM_BUFFER)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, ACCEPT_TIMEOUT)
    except BaseException:
        sock.close()
        raise
    return sock


def _set_internet_options(sock: socket.socket, address: Address, service: Service) -> None:
    """Set what accepted connections inherit, so that none of it costs anything per connection."""
    if address.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if service.free_bind:
        level, option = (
            (socket.IPPROTO_IPV6, IPV6_FREEBIND)
            if address.family == socket.AF_INET6
            else (socket.IPPROTO_IP, IP_FREEBIND)
        )
        sock.setsockopt(level, option, 1)
    if service.device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, service.device.encode())
    if address.transport.is_datagram:
        if address.is_wildcard:
            ask_for_destination(sock)
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, service.keepalive)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, service.nodelay)


def _bind_unix(sock: socket.socket, address: Address) -> None:
    """Bind to a file that has its mode from the first, so that nobody else can slip in."""
    mode = UNIX_MODE if address.mode is None else address.mode
    umask = os.umask(0o777 & ~mode)
    try:
        try:
            sock.bind(address.sockaddr)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_stale(address):
                raise
            os.unlink(address.path)
            sock.bind(address.sockaddr)
    finally:
        os.umask(umask)
    if address.path.startswith("@"):
        return
    try:
        if (address.uid, address.gid) != (-1, -1):
            os.chown(address.path, address.uid, address.gid, follow_symlinks=False)
        if stat.S_IMODE(os.lstat(address.path).st_mode) != mode:  # a default ACL (acl(5)) does so
            os.chmod(address.path, mode, follow_symlinks=False)
    except OSError:
        os.unlink(address.path)
        raise


def _is_stale(address: Address) -> bool:
    """Tell whether a socket's file was left behind: nobody answers there."""
    if address.path.startswith("@"):
        return False
    if not stat.S_ISSOCK(os.lstat(address.path).st_mode):
        raise FileExistsError(errno.EEXIST, "is not a socket; remove it or name another path")
    with socket.socket(address.family, address.transport.socket_type) as probe:
        probe.setblocking(False)
        return probe.connect_ex(address.sockaddr) == errno.ECONNREFUSED


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


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return (status.st_dev, status.st_ino)


@contextlib.contextmanager
def _gathering(
    failures: list[SuperdError], name: str, service: Service, address: Address
) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        failures.append(_explained(error, name, service, address))


def _explained(error: OSError, name: str, service: Service, address: Address) -> SuperdError:
    start = f"service.{name}: cannot listen on {address}"
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(f"{start}: the address is in use by another process")
    if error.errno == errno.EADDRNOTAVAIL:
        return SuperdError(
            f"{start}: this machine does not have the address;"
            " free-bind = true listens all the same"
        )
    if error.errno == errno.ENODEV:
        return SuperdError(f"{start}: there is no network interface {service.device!r}")
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = ": superd is not root" if os.geteuid() and 0 < address.port < 1024 else ""
        return NotPermitted(f"{start}: not permitted{remedy}")
    if error.errno == errno.EEXIST:
        return SuperdError(f"{start}: the file there {error.strerror}")
    return SuperdError(f"{start}: {reason(error)}")
