"""Listening sockets: bound all at once, watched, repaired, and unlinked by their owner only.

Runs in the master. Never accepts a connection or reads a datagram. Raises AddressInUse,
NotPermitted or SuperdError, with one line for each address that could not be bound.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from superd.config.model import Service
from superd.errors import AddressInUse, NotPermitted, SuperdError, reason
from superd.net.addresses import ANY_IPV4, ANY_IPV6, Address, Transport
from superd.net.binding import (
    bind,
    identity,
    limit_accept,
    set_options_of_clients,
    unlink_own,
)

Entrance = socket.socket
MADE_BY = ("mode", "uid", "gid", "greets")  # what addresses that are the same may differ in
SETTABLE = ("backlog", "keepalive", "nodelay", "wait")  # of an entry, while its socket lives
SO_MEMINFO = 55  # Linux; socket has no name for it


SHOWN = 5  # addresses, where there are many


class TooManyAddresses(SuperdError):
    """There are more addresses than descriptors."""


@dataclass
class Listener:
    """One bound socket of one service. `asked` is what its entry says, where 0 is any free port;
    `address` has the port that was really bound.
    """

    service: str
    entry: Service
    asked: Address
    address: Address
    socket: socket.socket
    shares_port: bool = False  # with a listener of ours at another local address
    file: tuple[int, int] | None = None  # device and inode of a unix socket's file
    entrance: Entrance | None = None  # where connections are put in that tcpmux passes on
    backlog: int = 0  # what the kernel made of the entry's
    is_given: bool = False  # it belongs to who started superd, and so does its file

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


def listen(
    services: Mapping[str, Service],
    existing: Sequence[Listener] = (),
    notices: list[str] | None = None,
) -> list[Listener]:
    """Bind every address of every service, or none; then listen.

    What other processes have of a range of ports they keep, as is added to `notices`.

    What is in `existing` already goes on with the same socket, and belongs to the returned listener
    from `adopt` on; until then nothing of it is changed but SO_REUSEPORT. One that is closed stays
    so: who holds its address is no reason for the others not to go on.

    Services may share a port on different local addresses: Linux takes a specific address beside
    the wildcard only with SO_REUSEPORT on both. That option would also let another superd of the
    same user join in silence, so such addresses are tried without it first.
    """
    wanted = [
        (name, service, address)
        for name, service in services.items()
        for listed in service.listen
        for address in sockets_of(listed)
    ]
    kept = _kept(wanted, existing)
    shared = _shared([address for *_, address in wanted] + [one.address for one in existing])
    for listener in existing:
        if listener.address in shared and not listener.is_closed:
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.shares_port = True
    found: list[Listener] = []
    failures: list[SuperdError] = []
    taken: dict[str, set[Address]] = {}  # by others, of ranges, by service
    taken_along = {  # IPv4 by a socket for both
        (wanted[number][0], replace(wanted[number][2], host=ANY_IPV4))
        for number, listener in kept.items()
        if listener.takes_ipv4
    }

    ours = {_end(listener.address) for listener in existing}
    for name, service, address in wanted:
        if address in shared and _end(address) not in ours:
            with _gathering(failures, name, address, service, taken):
                bind(service, address, share=False).close()
    if failures:
        # all that is in the way is to be told at once; what was tried has been told
        wanted = [one for one in wanted if one[2] not in shared]
    made: list[Listener] = []
    for number, (name, service, address) in enumerate(wanted):
        if address in taken.get(name, ()) or (
            number not in kept and (name, address) in taken_along
        ):
            continue
        with _gathering(failures, name, address, service, taken):
            if number in kept:
                found.append(replace(kept[number], service=name, entry=service))
            else:
                made.append(_listener(name, service, address, share=address in shared))
                found.append(made[-1])
        if failures and isinstance(failures[-1], TooManyAddresses):
            break  # it would be the same with each of those that are left
    for listener in made if not failures else ():
        with _gathering(failures, listener.service, listener.address, listener.entry, taken):
            listener.start()
    for name, addresses in taken.items():
        if not any(one.service == name and one.address not in addresses for one in found):
            failures.append(AddressInUse(f"service.{name}: others listen on all of its addresses"))
        if notices is not None:
            notices.append(f"service.{name}: others have of its ports: {_some(addresses)}")
    if failures:
        for listener in made:
            listener.close()
        raise type(failures[0])("\n".join(str(failure) for failure in failures))
    return [one for one in found if one.address not in taken.get(one.service, ())]


def _some(addresses: Iterable[Address]) -> str:
    """Return the first of many addresses, and how many more there are."""
    texts = sorted(map(str, addresses))
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more


def adopt(listeners: Sequence[Listener], existing: Sequence[Listener]) -> list[Listener]:
    """Make sockets that go on those of `listeners` alone; return what of `existing` is left over.

    What can be changed of a socket that lives is changed: backlog, keepalive, nodelay, and who may
    wait in accept(2).
    """
    sockets = {listener.socket for listener in listeners}
    left = [one for one in existing if one.socket not in sockets]
    before = {one.socket: one.entry for one in existing}
    for listener in listeners:
        if listener.is_closed:
            continue
        entry = before.get(listener.socket, listener.entry)
        if any(getattr(entry, key) != getattr(listener.entry, key) for key in SETTABLE):
            if listener.address.transport is Transport.TCP:
                set_options_of_clients(listener.socket, listener.entry)
            if not listener.address.transport.is_datagram:
                limit_accept(listener.socket, listener.entry)
            with contextlib.suppress(OSError):
                listener.start()
    return left


def _kept(
    wanted: Sequence[tuple[str, Service, Address]], existing: Sequence[Listener]
) -> dict[int, Listener]:
    """Return which of the wanted sockets are there already, by their number."""
    kept: dict[int, Listener] = {}
    free: dict[Address, list[Listener]] = {}
    for listener in existing:
        free.setdefault(listener.asked, []).append(listener)
    for number, (name, service, address) in enumerate(wanted):
        for listener in free.get(address, ()):
            if _is_same(listener, name, service, address):
                kept[number] = listener
                free[address].remove(listener)
                break
    return kept


def _is_same(listener: Listener, name: str, service: Service, address: Address) -> bool:
    """Tell whether a socket is just what would be made for an entry's address."""
    asked, entry = listener.asked, listener.entry
    is_any_port = not address.port and not address.path
    if asked != address or (is_any_port and listener.service != name):
        return False
    made_alike = all(getattr(asked, k) == getattr(address, k) for k in MADE_BY)
    return made_alike and (entry.free_bind, entry.device) == (service.free_bind, service.device)


def _end(address: Address) -> object:
    return (address.transport, address.family, address.port)


def renew(closed: Listener) -> Listener:
    """Return a new listener on the address of one that was closed, since it was past mending.

    Raises OSError; as long as a worker holds the old socket, the address is in use.
    """
    listener = _listener(closed.service, closed.entry, closed.address, share=closed.shares_port)
    listener.start()
    return replace(listener, asked=closed.asked)


def dropped(sock: socket.socket) -> int:
    """Return how many datagrams found the buffer of a socket full (sock_diag(7), SK_MEMINFO)."""
    return int(struct.unpack("@9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[-1])


def sockets_of(address: Address) -> tuple[Address, ...]:
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
        if address.port:
            ends.setdefault(_end(address), []).append(address)
    return {
        address
        for group in ends.values()
        if len(group) > 1 and any(member.is_wildcard for member in group)
        for address in group
    }


def _listener(name: str, service: Service, address: Address, *, share: bool) -> Listener:
    if address.transport is Transport.TCPMUX:
        way_out, entrance = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Listener(name, service, address, address, way_out, entrance=entrance)
    sock = bind(service, address, share=share)
    if address.transport.is_unix:
        file = None if address.path.startswith("@") else identity(address.path)
        listener = Listener(name, service, address, address, sock, file=file)
        # at once: a file where nobody listens is taken for one that was left behind
        listener.start()
        return listener
    bound = replace(address, port=sock.getsockname()[1])
    return Listener(name, service, address, bound, sock, shares_port=share)


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


@contextlib.contextmanager
def _gathering(
    failures: list[SuperdError],
    name: str,
    address: Address,
    service: Service,
    taken: dict[str, set[Address]],
) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE and address.is_of_range:
            taken.setdefault(name, set()).add(address)
        else:
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
    if error.errno in (errno.EMFILE, errno.ENFILE):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return TooManyAddresses(
            f"{start} and what comes after it: superd may have {most} files open;"
            " raise that limit (LimitNOFILE=, ulimit -n)"
        )
    if error.errno == errno.ENODEV:
        return SuperdError(f"{start}: there is no network interface {service.device!r}")
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = ": superd is not root" if os.geteuid() and 0 < address.port < 1024 else ""
        return NotPermitted(f"{start}: not permitted{remedy}")
    if error.errno == errno.EEXIST:
        return SuperdError(f"{start}: the file there {error.strerror}")
    return SuperdError(f"{start}: {reason(error)}")
