"""Sockets that were bound for superd: by a socket unit of systemd, or by a superd before this one,
for which whoever supervises it has kept them (sd_listen_fds(3), sd_pid_notify_with_fds(3)).

`take_inherited` runs in the command line, before anything is forked; `match` in the master. Never
unlinks the file of a socket that another process made. Raises UsageError for a connection, as
superd is to accept those itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import stat
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from functools import partial

from superd.config.model import Service
from superd.errors import UsageError, printable
from superd.listen.binding import identity, mode_of, prepare, unlink_own
from superd.listen.listener import Listener
from superd.listen.listeners import sockets_of
from superd.net.addresses import ANY_IPV4, Address, Transport

FIRST = 3  # SD_LISTEN_FDS_START
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
STORED = re.compile(r"superd/([^/]+)(?:/([0-9]+)-([0-9]+))?")
DEVICE_SIZE = 16  # IFNAMSIZ
PROTOCOLS = {
    (socket.SOCK_STREAM, socket.IPPROTO_TCP): Transport.TCP,
    (socket.SOCK_DGRAM, socket.IPPROTO_UDP): Transport.UDP,
}
UNIX_KINDS = {
    kind.socket_type: kind for kind in (Transport.UNIX, Transport.UNIXGRAM, Transport.UNIXPACKET)
}

Place = tuple[str, Address]  # a service's name, and an address of its


@dataclass(frozen=True, eq=False)
class Inherited:
    """One socket that was passed to superd.

    `is_own` tells that superd has bound and stored it; `service` is for whom, or the name that a
    socket unit gives it, and `file` is device and inode of the file that superd made for it.
    """

    number: int
    inode: int
    name: str
    socket: socket.socket
    address: Address
    is_own: bool
    service: str
    file: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{printable(str(self.address))} ({_called(self.number, self.name)})"

    def close(self) -> None:
        """Close it, since nobody wants it."""
        if self.file is not None:
            unlink_own(self.address.path, self.file)
        self.socket.close()


@dataclass(frozen=True)
class Inheritance:
    """All sockets that were passed to superd, and what was wrong with others."""

    sockets: list[Inherited] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def fd_name(listener: Listener) -> str:
    """Return by what name a socket is to be stored, so that it is known when it comes back."""
    if listener.file is None:
        return f"superd/{listener.service}"
    device, inode = listener.file
    return f"superd/{listener.service}/{device}-{inode}"


def has_file(name: str) -> bool:
    """Tell whether a socket that is stored by that name has a file of superd's."""
    stored = STORED.fullmatch(name)
    return stored is not None and stored[2] is not None


def take_inherited(environment: MutableMapping[str, str] = os.environ) -> Inheritance:
    """Take the sockets that are meant for this process, and the variables that tell of them."""
    process, count, names, _ = (environment.pop(key, "") for key in VARIABLES)
    found = Inheritance()
    if process != str(os.getpid()):
        return found
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FIRST
    if not re.fullmatch("[0-9]{1,7}", count) or int(count) > most:
        found.notices.append(f'LISTEN_FDS="{printable(count)}" is no number of open descriptors')
        return found
    named = names.split(":")
    for number in range(FIRST, FIRST + int(count)):
        name = named[number - FIRST] if number - FIRST < len(named) else ""
        try:
            found.sockets.append(_checked(number, name))
        except ValueError as error:
            found.notices.append(f"{_called(number, name)} was passed to superd, but {error}")
    return found


def _called(number: int, name: str) -> str:
    return f"descriptor {number}, named {printable(name)}" if name else f"descriptor {number}"


def _checked(number: int, name: str) -> Inherited:
    """Return a descriptor as a socket; ValueError, and it is closed, where it is none to serve."""
    try:
        status = os.fstat(number)
    except OSError:
        raise ValueError("is not open") from None
    if not stat.S_ISSOCK(status.st_mode):
        os.close(number)
        raise ValueError("is not a socket; it is closed")
    sock = socket.socket(fileno=number)
    sock.set_inheritable(False)
    is_unix = sock.family == socket.AF_UNIX
    transport = UNIX_KINDS.get(sock.type) if is_unix else PROTOCOLS.get((sock.type, sock.proto))
    if transport is None:
        sock.close()
        raise ValueError("is neither tcp nor udp nor a unix socket; it is closed")
    with contextlib.suppress(OSError):
        sock.getpeername()
        raise UsageError(
            f"{_called(number, name)} is a connection: superd is to accept those itself, so the"
            " socket unit needs Accept=no, and superd.service no instances"
        )
    address = Address.from_sockaddr(transport, sock.getsockname())
    if not transport.is_datagram and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise ValueError(f"{printable(str(address))} does not listen; it is closed")
    inherited = partial(Inherited, number, status.st_ino, name, sock, address)
    stored = STORED.fullmatch(name)
    if stored is None:
        return inherited(is_own=False, service=name)
    file = (int(stored[2]), int(stored[3])) if stored[2] else None
    return inherited(is_own=True, service=stored[1], file=file)


def match(
    services: Mapping[str, Service], inheritance: Inheritance, notices: list[str]
) -> list[Listener]:
    """Return as listeners what services listen on, for `listen`; close the others.

    A socket with the name of a service belongs to that one's address that is like it. If there is
    none, it takes the place of one of the same transport: a socket unit outranks the configuration,
    as clients get in there whatever superd does. One without goes by its address alone.
    """
    notices += inheritance.notices
    if not inheritance.sockets:
        return []
    wanted: dict[Place, tuple[Service, Address]] = {
        (name, address): (service, address)
        for name, service in services.items()
        for listed in service.listen
        for address in sockets_of(listed)
    }
    owners = {address: name for name, address in reversed(wanted)}
    free, left, found = dict(wanted), [], []
    for one in inheritance.sockets:
        likely = (place for place in _likely(one, services, owners) if place in free)
        place = next((p for p in likely if not one.is_own or _is_as(one, *free[p])), None)
        if place is None:
            left.append(one)
        else:
            found.append(_listener(one, place[0], *free.pop(place)))
    for one in left:
        place = next((p for p in free if _may_replace(one, p)), None)
        if place is not None:
            notices.append(
                f"service.{place[0]}: its socket unit has it listen on {one},"
                f" in place of {place[1]}, which is in listen"
            )
            found.append(_listener(one, place[0], *free.pop(place)))
            continue
        if not one.is_own:
            notices.append(
                f"{one} was passed to superd, but is in the listen of no service and is closed;"
                " add it there, or take it out of the socket unit"
            )
        one.close()
    for listener in found:
        along = replace(listener.address, host=ANY_IPV4)
        if listener.takes_ipv4 and (listener.service, along) not in wanted:
            notices.append(
                f"service.{listener.service}: the socket unit's {listener.address} takes IPv4, too;"
                " BindIPv6Only=ipv6-only there keeps it out"
            )
    return found


def _likely(
    one: Inherited, services: Mapping[str, Service], owners: Mapping[Address, str]
) -> Iterator[Place]:
    """Yield what a socket might be for."""
    if one.service in services:
        yield one.service, one.address
        yield one.service, replace(one.address, port=0)
    if one.is_own or one.service not in services:
        yield owners.get(one.address, ""), one.address


def _may_replace(one: Inherited, place: Place) -> bool:
    service, address = place
    same_kind = one.address.transport is address.transport
    return not one.is_own and one.service == service and same_kind


def _is_as(one: Inherited, service: Service, address: Address) -> bool:
    """Tell whether a socket that superd had stored is as it would be made now."""
    if not address.transport.is_unix:
        device = one.socket.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, DEVICE_SIZE)
        return device.rstrip(b"\0").decode() == (service.device or "")
    if not address.is_file:
        return True
    try:
        status = os.lstat(address.path)
    except OSError:
        return False
    return (
        identity(address.path) == one.file
        and stat.S_IMODE(status.st_mode) == mode_of(address)
        and address.uid in (-1, status.st_uid)
        and address.gid in (-1, status.st_gid)
    )


def _listener(one: Inherited, name: str, service: Service, asked: Address) -> Listener:
    prepare(one.socket, one.address, service)
    is_external = not one.is_own
    listener = Listener(
        name, service, asked, one.address, one.socket, file=one.file, is_external=is_external
    )
    listener.start()
    return listener
