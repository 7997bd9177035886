"""Sockets that the service manager passes to superd (sd_listen_fds(3)).

They come from a socket unit, or a former superd has stored them (sd_pid_notify_with_fds(3)).

`take_inherited` runs in the command line, before any fork; `match` runs in the master. Never
unlinks the file of a socket that another process made. Raises UsageError for a connection, as
superd accepts connections itself.
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
from superd.listen.binding import file_identity, mode_of, prepare, unlink_own
from superd.listen.listener import Listener
from superd.listen.listeners import sockets_of
from superd.listen.names import NO_ANSWERS, Answers
from superd.net.addresses import ANY_IPV4, Address, Transport

SD_LISTEN_FDS_START = 3
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
STORED_NAME = re.compile(r"superd/([^/]+)(?:/([0-9]+)-([0-9]+))?")
IFNAMSIZ = 16  # bytes, with a NUL (netdevice(7))
PROTOCOLS = {
    (socket.SOCK_STREAM, socket.IPPROTO_TCP): Transport.TCP,
    (socket.SOCK_DGRAM, socket.IPPROTO_UDP): Transport.UDP,
}
UNIX_KINDS = {
    kind.socket_type: kind for kind in (Transport.UNIX, Transport.UNIXGRAM, Transport.UNIXPACKET)
}

ServiceAddress = tuple[str, Address]  # the name of a service, and one of its addresses


@dataclass(frozen=True, eq=False)
class Inherited:
    """One socket that was passed to superd.

    `is_own` means that a former superd bound and stored it; else it is from a socket unit.
    `service` is the service that it was stored for, or its name in the unit (FileDescriptorName=).
    `file` is device and inode of the file that superd made for it.
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
        return f"{printable(str(self.address))} ({_label(self.number, self.name)})"

    def close(self) -> None:
        """Close a socket that no service uses, and remove its file if superd made it."""
        if self.file is not None:
            unlink_own(self.address.path, self.file)
        self.socket.close()


@dataclass(frozen=True)
class Inheritance:
    """The sockets that were passed to superd, and notices about unusable ones."""

    sockets: list[Inherited] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def fd_name(listener: Listener) -> str:
    """Return the name under which the service manager stores a socket (FDNAME=)."""
    if listener.file is None:
        return f"superd/{listener.service}"
    device, inode = listener.file
    return f"superd/{listener.service}/{device}-{inode}"


def has_file(name: str) -> bool:
    """Return whether a socket with that name has a file that superd made."""
    stored = STORED_NAME.fullmatch(name)
    return stored is not None and stored[2] is not None


def take_inherited(environment: MutableMapping[str, str] = os.environ) -> Inheritance:
    """Take the sockets that are passed to this process; remove their variables."""
    process, count, names, _ = (environment.pop(key, "") for key in VARIABLES)
    found = Inheritance()
    if process != str(os.getpid()):
        return found
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SD_LISTEN_FDS_START
    if not re.fullmatch("[0-9]{1,7}", count) or int(count) > most:
        text = f'expected the number of passed descriptors in LISTEN_FDS, not "{printable(count)}"'
        found.notices.append(text)
        return found
    named = names.split(":")
    for index in range(int(count)):
        number = SD_LISTEN_FDS_START + index
        name = named[index] if index < len(named) else ""
        try:
            found.sockets.append(_checked(number, name))
        except ValueError as error:
            found.notices.append(f"{_label(number, name)} was passed to superd, but {error}")
    return found


def _label(number: int, name: str) -> str:
    return f"descriptor {number}, named {printable(name)}" if name else f"descriptor {number}"


def _checked(number: int, name: str) -> Inherited:
    """Return the socket of a descriptor. ValueError for one that cannot be served; it is closed."""
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
            f"{_label(number, name)} is a connection, but superd accepts connections itself; set"
            " Accept=no in the socket unit, and use superd.service without an instance"
        )
    address = Address.from_sockaddr(transport, sock.getsockname())
    if not transport.is_datagram and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise ValueError(f"{printable(str(address))} does not listen; it is closed")
    inherited = partial(Inherited, number, status.st_ino, name, sock, address)
    stored = STORED_NAME.fullmatch(name)
    if stored is None:
        return inherited(is_own=False, service=name)
    file = (int(stored[2]), int(stored[3])) if stored[2] else None
    return inherited(is_own=True, service=stored[1], file=file)


def match(
    services: Mapping[str, Service],
    inheritance: Inheritance,
    notices: list[str],
    answers: Answers = NO_ANSWERS,
) -> list[Listener]:
    """Return the sockets that services listen on as listeners, for `listen`; close the others.

    A socket with the name of a service is matched with the same address of that service. If the
    service does not have it, the socket replaces an address with the same transport: a socket unit
    takes precedence over the configuration, as its socket is open in any case. A socket without
    the name of a service is matched by its address alone. A stored socket is also matched with a
    name that cannot be looked up now.
    """
    notices += inheritance.notices
    if not inheritance.sockets:
        return []
    wanted: dict[ServiceAddress, tuple[Service, Address]] = {
        (name, address): (service, address)
        for name, service in services.items()
        for listed in service.listen
        for address in sockets_of(listed, answers)
    }
    owners = {address: name for name, address in reversed(wanted)}
    free, left, found = dict(wanted), [], []
    for one in inheritance.sockets:
        likely = (place for place in _likely(one, services, owners) if place in free)
        place = next((p for p in likely if not one.is_own or _is_unchanged(one, *free[p])), None)
        if place is None:
            left.append(one)
        else:
            found.append(_listener(one, place[0], *free.pop(place)))
    for one in left:
        place = next((p for p in free if _may_replace(one, p)), None)
        if place is not None:
            notices.append(
                f"service.{place[0]}: listens on {one}, from its socket unit,"
                f" instead of {place[1]}, from listen"
            )
            found.append(_listener(one, place[0], *free.pop(place)))
            continue
        if not one.is_own:
            notices.append(
                f"{one} was passed to superd, but no service listens there, so it is closed;"
                " add it to listen of a service, or remove it from the socket unit"
            )
        one.close()
    for listener in found:
        along = replace(listener.address, host=ANY_IPV4)
        if listener.takes_ipv4 and (listener.service, along) not in wanted:
            notices.append(
                f"service.{listener.service}: {listener.address} of the socket unit accepts IPv4,"
                " too; set BindIPv6Only=ipv6-only there to prevent that"
            )
    return found


def _likely(
    one: Inherited, services: Mapping[str, Service], owners: Mapping[Address, str]
) -> Iterator[ServiceAddress]:
    """Yield the service addresses that a socket may be for, best first."""
    if one.service in services:
        yield one.service, one.address
        yield one.service, replace(one.address, port=0)
        for address in services[one.service].listen if one.is_own else ():
            if address.is_name and one.address.at(address.host, "") == address:
                yield one.service, address
    if one.is_own or one.service not in services:
        yield owners.get(one.address, ""), one.address


def _may_replace(one: Inherited, wanted: ServiceAddress) -> bool:
    service, address = wanted
    same_kind = one.address.transport is address.transport
    return not one.is_own and one.service == service and same_kind


def _is_unchanged(one: Inherited, service: Service, address: Address) -> bool:
    """Return whether a stored socket is as superd would make it now."""
    if not address.transport.is_unix:
        device = one.socket.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, IFNAMSIZ)
        return device.rstrip(b"\0").decode() == (service.device or "")
    if not address.is_file:
        return True
    try:
        status = os.lstat(address.path)
    except OSError:
        return False
    return (
        file_identity(address.path) == one.file
        and stat.S_IMODE(status.st_mode) == mode_of(address)
        and address.uid in (-1, status.st_uid)
        and address.gid in (-1, status.st_gid)
    )


def _listener(one: Inherited, name: str, service: Service, configured: Address) -> Listener:
    prepare(one.socket, one.address, service)
    if configured.is_name and one.is_own:
        configured = one.address.at(one.address.host, configured.host)
    is_external = not one.is_own
    listener = Listener(
        name, service, configured, one.address, one.socket, file=one.file, is_external=is_external
    )
    listener.start()
    return listener
