"""Opens the listeners of all services: every address is bound, or none is.

Runs in the master and the command line. Never accepts a connection or reads a datagram. Raises
AddressInUse, NotPermitted or SuperdError, with one line for each address that cannot be bound.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from superd.config.model import Service
from superd.errors import AddressInUse
from superd.listen.binding import bind, file_at, file_identity
from superd.listen.failures import Failures, TooManyAddresses
from superd.listen.listener import Listener
from superd.net.addresses import ANY_IPV4, ANY_IPV6, Address, Transport

# Fields in which addresses may differ that compare equal.
DETAILS_OF_EQUAL_ADDRESSES = ("mode", "uid", "gid", "greets")
MAX_ADDRESSES_SHOWN = 5


def listen(
    services: Mapping[str, Service],
    existing: Sequence[Listener] = (),
    notices: list[str] | None = None,
) -> list[Listener]:
    """Bind every address of every service, or none; then listen.

    Ports of a range that other processes have are left out; `notices` names them.

    A listener of `existing` with a wanted address keeps its socket, which belongs to the returned
    listener once `adopt` is called. Until then only its SO_REUSEPORT is changed. A listener that is
    closed stays closed: another process may hold its address, which is no reason to fail the
    others.

    Services may share a port on different local addresses. Linux accepts a specific address beside
    the wildcard only with SO_REUSEPORT on both. That option would also let a second superd of the
    same user share the port silently, so such addresses are first bound without it, as a test.
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
    failures = Failures(existing)
    opened, in_use = failures.opened, failures.in_use
    covered = {  # IPv4 addresses that a kept dual-stack socket serves
        (wanted[number][0], replace(wanted[number][2], host=ANY_IPV4))
        for number, listener in kept.items()
        if listener.takes_ipv4
    }

    ours = {_port_key(listener.address) for listener in existing}
    for name, service, address in wanted:
        if address in shared and _port_key(address) not in ours:
            with failures.collect(name, service, address):
                bind(service, address, share=False).close()
    # after an error the remaining addresses are tried as well, so that one run reports all errors
    tried = shared if failures.errors else ()
    made: list[Listener] = []
    for number, (name, service, address) in enumerate(wanted):
        if address in tried or address in in_use.get(name, ()):
            continue
        if number not in kept and (name, address) in covered:
            continue
        with failures.collect(name, service, address):
            if number in kept:
                opened.append(_kept_for(kept[number], name, service, address))
            else:
                made.append(_open(name, service, address, share=address in shared))
                opened.append(made[-1])
        if failures.errors and isinstance(failures.errors[-1], TooManyAddresses):
            break  # every later address would fail as well
    for listener in made if not failures.errors else ():
        with failures.collect(listener.service, listener.entry, listener.address):
            listener.start()
    for name, addresses in in_use.items():
        if not any(one.service == name and one.address not in addresses for one in opened):
            text = f"service.{name}: other processes listen on all of its addresses"
            failures.errors.append(AddressInUse(text))
        if notices is not None:
            ports = _abbreviated(addresses)
            notices.append(f"service.{name}: left out, as other processes listen there: {ports}")
    if notices is not None:
        notices += _lost_files(wanted, existing)
    if failures.errors:
        for listener in made:
            listener.close()
        raise type(failures.errors[0])("\n".join(map(str, failures.errors)))
    return [one for one in opened if one.address not in in_use.get(one.service, ())]


def _abbreviated(addresses: Iterable[Address]) -> str:
    """Return the first addresses as text, and how many more there are."""
    texts = sorted(map(str, addresses))
    more = (
        f" and {len(texts) - MAX_ADDRESSES_SHOWN} more" if len(texts) > MAX_ADDRESSES_SHOWN else ""
    )
    return ", ".join(texts[:MAX_ADDRESSES_SHOWN]) + more


def _kept(
    wanted: Sequence[tuple[str, Service, Address]], existing: Sequence[Listener]
) -> dict[int, Listener]:
    """Return the existing listeners that wanted addresses can keep, by index in `wanted`.

    A listener with the same device is preferred. `adopt` changes what differs in the others.
    """
    kept: dict[int, Listener] = {}
    free: dict[object, list[Listener]] = {}
    for listener in existing:
        free.setdefault(_key_of(listener.configured, listener.file), []).append(listener)
    known = [_key_of(address, file_at(address.path)) for *_, address in wanted]
    for may_differ in (False, True):
        for number, (name, service, address) in enumerate(wanted):
            is_any_port = not address.port and not address.path
            for listener in free.get(known[number], ()) if number not in kept else ():
                is_for_it = not is_any_port or listener.service == name
                if is_for_it and (may_differ or listener.entry.device == service.device):
                    kept[number] = listener
                    free[known[number]].remove(listener)
                    break
    return kept


def _key_of(address: Address, file: tuple[int, int] | None) -> object:
    """Return the key of a socket; that of a file is its inode, as it may have several names."""
    if not address.is_file:
        return address
    return (address.transport, file or file_at(address.path) or address.path)


def _kept_for(listener: Listener, name: str, service: Service, address: Address) -> Listener:
    """Return a listener for another entry with the socket of an existing one."""
    how = {key: getattr(address, key) for key in DETAILS_OF_EQUAL_ADDRESSES}
    if listener.file is not None:
        how["path"] = address.path
    bound = replace(listener.address, **how)
    return replace(listener, service=name, entry=service, configured=address, address=bound)


def _lost_files(
    wanted: Sequence[tuple[str, Service, Address]], existing: Sequence[Listener]
) -> Iterator[str]:
    """Yield a notice for each socket file that another process removed or replaced."""
    lost = {
        one.configured for one in existing if one.file not in (None, file_at(one.configured.path))
    }
    for name, _, address in wanted:
        if address in lost:
            what = f"the file of {address} was removed or replaced"
            yield f"service.{name}: {what}; superd makes it again"


def _port_key(address: Address) -> object:
    return (address.transport, address.family, address.port)


def reopen(closed: Listener) -> Listener:
    """Return a new listener on the address of one that was closed as beyond repair.

    Raises OSError, such as EADDRINUSE as long as a worker holds the old socket.
    """
    listener = _open(closed.service, closed.entry, closed.address, share=closed.shares_port)
    listener.start()
    return replace(listener, configured=closed.configured)


def sockets_of(address: Address) -> tuple[Address, ...]:
    """Return one address for each socket: "*" is IPv4, and IPv6 if this machine has it."""
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
    """Return the addresses that share a port with the wildcard of their transport and family."""
    ends: dict[object, list[Address]] = {}
    for address in addresses:
        if address.port:
            ends.setdefault(_port_key(address), []).append(address)
    return {
        address
        for group in ends.values()
        if len(group) > 1 and any(member.is_wildcard for member in group)
        for address in group
    }


def _open(name: str, service: Service, address: Address, *, share: bool) -> Listener:
    if address.transport is Transport.TCPMUX:
        receiver, entrance = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Listener(name, service, address, address, receiver, entrance=entrance)
    sock = bind(service, address, share=share)
    if address.transport.is_unix:
        file = None if address.path.startswith("@") else file_identity(address.path)
        listener = Listener(name, service, address, address, sock, file=file)
        # at once, as another process may remove a socket file on which no process listens
        listener.start()
        return listener
    bound = replace(address, port=sock.getsockname()[1])
    return Listener(name, service, address, bound, sock, shares_port=share)
