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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from superd.config.model import Service
from superd.errors import AddressInUse, NotPermitted, SuperdError, reason
from superd.net.addresses import Address
from superd.net.pktinfo import ask_for_destination

# Linux; socket has no names for these before 3.12 or 3.14
IP_FREEBIND = 15
IPV6_FREEBIND = 78

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
    file: tuple[int, int] | None = None  # device and inode of a unix socket's file

    def close(self) -> None:
        """Close the socket, and remove its file where it is still ours."""
        self.socket.close()
        if self.file is not None:
            with contextlib.suppress(OSError):
                if _identity(self.address.path) == self.file:
                    os.unlink(self.address.path)

    def repair(self) -> str | None:
        """Undo what a worker may have done to the shared socket; return what it was.

        Raises OSError where the socket cannot be mended and has to be made anew.
        """
        done = None
        if not fcntl.fcntl(self.socket, fcntl.F_GETFL) & os.O_NONBLOCK:
            self.socket.setblocking(False)
            done = "was made blocking"
        if self.address.transport.is_unix or self.address.transport.is_datagram:
            poll = select.poll()
            poll.register(self.socket, select.POLLRDHUP)
            if poll.poll(0):
                raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
        if not self.address.transport.is_datagram:
            if not self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                done = "was shut down"
            elif self._backlog() < 1:
                done = "had its backlog taken away"
            self.socket.listen(self.entry.backlog)
            if self.socket.getsockname() != self.address.sockaddr and not self.file:
                self._check_name()
        return done

    def _backlog(self) -> int:
        """The longest queue the kernel keeps: tcpi_sacked of a listening socket (tcp(7))."""
        if self.address.transport.is_unix:
            return self.entry.backlog  # not told for unix sockets; listen() restores it anyway
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        return int(struct.unpack_from("@I", info, 28)[0])

    def _check_name(self) -> None:
        now = Address.of_socket(self.address.transport, self.socket.getsockname())
        if now.port != self.address.port:
            raise OSError(errno.EADDRNOTAVAIL, f"the port became {now.port}")


def listen(services: Mapping[str, Service]) -> list[Listener]:
    """Bind every address of every service, or none; then listen.

    Services may share a port on different local addresses: Linux takes a specific address beside
    the wildcard only with SO_REUSEPORT on both. That option would also let another superd of the
    same user join in silence, so such addresses are tried without it first, and it is taken away
    again once all are bound.
    """
    wanted = [
        (name, service, address, one)
        for name, service in services.items()
        for address in service.listen
        for one in address.expanded()
    ]
    shared = _shared(one for *_, one in wanted)
    found: list[Listener] = []
    failures: list[SuperdError] = []
    for name, service, _, one in wanted:
        if one in shared:
            try:
                _bound(one, service).close()
            except OSError as error:
                failures.append(_explained(error, name, one))
    for name, service, address, one in wanted if not failures else ():
        try:
            found.append(_listener(name, service, one, share=one in shared))
        except OSError as error:
            absent = error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
            if not (absent and address.host == "*" and one.family == socket.AF_INET6):
                failures.append(_explained(error, name, one))
    if failures:
        for listener in found:
            listener.close()
        raise type(failures[0])("\n".join(str(failure) for failure in failures))
    for listener in found:
        _start(listener)
    return found


def renew(listener: Listener) -> Listener:
    """Return a new socket on the same address, in place of one that cannot be mended."""
    listener.close()
    renewed = _listener(listener.service, listener.entry, listener.address, share=False)
    _start(renewed)
    return renewed


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
    sock = _bound(address, service, share=share)
    if address.transport.is_unix:
        file = None if address.path.startswith("@") else _identity(address.path)
        return Listener(name, service, address, sock, file)
    return Listener(name, service, replace(address, port=sock.getsockname()[1]), sock)


def _start(listener: Listener) -> None:
    sock, address = listener.socket, listener.address
    if not address.transport.is_unix:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    if not address.transport.is_datagram:
        sock.listen(listener.entry.backlog)


def _bound(address: Address, service: Service, *, share: bool = False) -> socket.socket:
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
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAM_BUFFER)
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
    """Bind to a file that nobody can connect to before it has its mode and owner."""
    umask = os.umask(0o177)
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
    if not address.path.startswith("@"):
        if (address.uid, address.gid) != (-1, -1):
            os.chown(address.path, address.uid, address.gid, follow_symlinks=False)
        os.chmod(address.path, UNIX_MODE if address.mode is None else address.mode)


def _is_stale(address: Address) -> bool:
    """Tell whether a socket's file was left behind: nobody answers there."""
    if address.path.startswith("@"):
        return False
    if not stat.S_ISSOCK(os.lstat(address.path).st_mode):
        raise FileExistsError(errno.EEXIST, "is not a socket; remove it or name another path")
    with socket.socket(address.family, address.transport.socket_type) as probe:
        probe.setblocking(False)
        return probe.connect_ex(address.sockaddr) == errno.ECONNREFUSED


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return (status.st_dev, status.st_ino)


def _explained(error: OSError, name: str, address: Address) -> SuperdError:
    start = f"service.{name}: cannot listen on {address}"
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(f"{start}: the address is in use by another process")
    if error.errno == errno.EADDRNOTAVAIL:
        return SuperdError(
            f"{start}: this machine does not have the address;"
            " free-bind = true listens all the same"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = ": superd is not root" if os.geteuid() and 0 < address.port < 1024 else ""
        return NotPermitted(f"{start}: not permitted{remedy}")
    if error.errno == errno.EEXIST:
        return SuperdError(f"{start}: the file there {error.strerror}")
    return SuperdError(f"{start}: {reason(error)}")
