"""Binds one socket to an address and sets the options of its entry.

Runs in the master and the command line. Never listens. A unix socket's file has its mode from the
start, so no client gets in before it is set. Raises OSError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from superd.config.model import Service
from superd.net.addresses import Address
from superd.net.pktinfo import enable_pktinfo
from superd.net.receive_timeout import ACCEPT_TIMEOUT, NO_TIMEOUT

# Linux; the socket module lacks these names before Python 3.12 and 3.14
IP_FREEBIND = 15
IPV6_FREEBIND = 78

DATAGRAM_BUFFER_BYTES = 1 << 20
DEFAULT_UNIX_MODE = 0o666  # as in systemd; `mode=` and `allow` of the entry restrict it


def bind(service: Service, address: Address, *, share: bool) -> socket.socket:
    """Return a bound socket, with SO_REUSEPORT if it shares its port."""
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
        _set_queue_options(sock, address, service)
    except BaseException:
        sock.close()
        raise
    return sock


def _set_internet_options(sock: socket.socket, address: Address, service: Service) -> None:
    """Set the options of an internet socket; accepted connections inherit some of them."""
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
        set_device(sock, service.device)
    if not address.transport.is_datagram:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _set_traffic_options(sock, address, service)


def prepare(sock: socket.socket, address: Address, service: Service) -> None:
    """Set the options that `bind` sets, on a socket that another process has bound."""
    sock.setblocking(False)
    if not address.transport.is_unix:
        _set_traffic_options(sock, address, service)
    _set_queue_options(sock, address, service)


def _set_traffic_options(sock: socket.socket, address: Address, service: Service) -> None:
    if not address.transport.is_datagram:
        set_client_options(sock, service)
    elif address.is_wildcard:
        enable_pktinfo(sock)


def _set_queue_options(sock: socket.socket, address: Address, service: Service) -> None:
    if address.transport.is_datagram:
        # a queued unix datagram counts against its sender's buffer, so this bounds the replies
        is_unix = address.transport.is_unix
        which = socket.SO_SNDBUF if is_unix else socket.SO_RCVBUF
        sock.setsockopt(socket.SOL_SOCKET, which, DATAGRAM_BUFFER_BYTES)
    else:
        set_accept_timeout(sock, service)


def set_accept_timeout(sock: socket.socket, service: Service) -> None:
    """Have accept(2) time out soon, unless a program accepts itself (`wait = true`).

    Such a program expects accept(2) to block, and its connections would inherit the timeout.
    """
    timeout = NO_TIMEOUT if service.wait else ACCEPT_TIMEOUT
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)


def set_client_options(sock: socket.socket, service: Service) -> None:
    """Set the options that accepted tcp connections inherit and a reload may change.

    Set once on the listener, they cost nothing per connection.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, service.keepalive)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, service.nodelay)


def set_device(sock: socket.socket, device: str) -> None:
    """Accept clients by one network interface only; "" means all of them."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())


def _bind_unix(sock: socket.socket, address: Address) -> None:
    """Bind to a file that has its mode from the start, so that no other user can connect early."""
    mode = mode_of(address)
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
        set_owner_and_mode(address.path, address.uid, address.gid, mode)
    except OSError:
        os.unlink(address.path)
        raise


def mode_of(address: Address) -> int:
    """Return the mode for a socket's file."""
    return DEFAULT_UNIX_MODE if address.mode is None else address.mode


def set_owner_and_mode(path: str, uid: int, gid: int, mode: int) -> None:
    """Set owner, group and mode of a socket's file; -1 leaves the owner or group unchanged."""
    if (uid, gid) != (-1, -1):
        os.chown(path, uid, gid, follow_symlinks=False)
    if stat.S_IMODE(os.lstat(path).st_mode) != mode:  # such as by a default ACL (acl(5))
        os.chmod(path, mode, follow_symlinks=False)


def _is_stale(address: Address) -> bool:
    """Return whether a socket's file was left behind by a process that ended."""
    if address.path.startswith("@"):
        return False
    if not stat.S_ISSOCK(os.lstat(address.path).st_mode):
        raise FileExistsError(errno.EEXIST, "is not a socket; remove it or name another path")
    with socket.socket(address.family, address.transport.socket_type) as probe:
        probe.setblocking(False)
        return probe.connect_ex(address.sockaddr) == errno.ECONNREFUSED


def file_identity(path: str) -> tuple[int, int]:
    """Return device and inode, which identify a file as long as it exists."""
    status = os.lstat(path)
    return (status.st_dev, status.st_ino)


def file_at(path: str) -> tuple[int, int] | None:
    """Return the identity of the file at a path; None if there is none."""
    with contextlib.suppress(OSError):
        return file_identity(path) if path.startswith("/") else None
    return None


def unlink_own(path: str, file: tuple[int, int]) -> None:
    """Remove a socket's file if it still has that identity.

    Call this while the socket is open: until it is closed no other file can get its inode.
    """
    with contextlib.suppress(OSError):
        if file_identity(path) == file:
            os.unlink(path)
