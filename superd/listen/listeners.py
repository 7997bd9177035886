"""Listening sockets: bound all at once, watched, repaired, and unlinked by their owner only.

Runs in the master. Never accepts a connection or reads a datagram. Raises AddressInUse,
NotPermitted or SuperdError, with one line for each address that could not be bound.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from superd.config.model import Service
from superd.errors import AddressInUse
from superd.listen.binding import bind, file_at, identity
from superd.listen.failures import Failures, TooManyAddresses
from superd.listen.listener import Listener
from superd.net.addresses import ANY_IPV4, ANY_IPV6, Address, Transport

# Addresses that compare equal may differ in these.
DETAILS_OF_EQUAL_ADDRESSES = ("mode", "uid", "gid", "greets")
MAX_ADDRESSES_SHOWN = 5


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
    failures = Failures(existing)
    found, taken = failures.found, failures.taken
    taken_along = {  # IPv4 by a socket for both
        (wanted[number][0], replace(wanted[number][2], host=ANY_IPV4))
        for number, listener in kept.items()
        if listener.takes_ipv4
    }

    ours = {_end(listener.address) for listener in existing}
    for name, service, address in wanted:
        if address in shared and _end(address) not in ours:
            with failures.gathered(name, service, address):
                bind(service, address, share=False).close()
    if failures.told:
        # all that is in the way is to be told at once; what was tried has been told
        wanted = [one for one in wanted if one[2] not in shared]
    made: list[Listener] = []
    for number, (name, service, address) in enumerate(wanted):
        if address in taken.get(name, ()) or (
            number not in kept and (name, address) in taken_along
        ):
            continue
        with failures.gathered(name, service, address):
            if number in kept:
                found.append(_kept_for(kept[number], name, service, address))
            else:
                made.append(_listener(name, service, address, share=address in shared))
                found.append(made[-1])
        if failures.told and isinstance(failures.told[-1], TooManyAddresses):
            break  # it would be the same with each of those that are left
    for listener in made if not failures.told else ():
        with failures.gathered(listener.service, listener.entry, listener.address):
            listener.start()
    for name, addresses in taken.items():
        if not any(one.service == name and one.address not in addresses for one in found):
            text = f"service.{name}: others listen on all of its addresses"
            failures.told.append(AddressInUse(text))
        if notices is not None:
            notices.append(f"service.{name}: others have of its ports: {_some(addresses)}")
    if notices is not None:
        notices += _lost_files(wanted, existing)
    if failures.told:
        for listener in made:
            listener.close()
        raise type(failures.told[0])("\n".join(map(str, failures.told)))
    return [one for one in found if one.address not in taken.get(one.service, ())]


def _some(addresses: Iterable[Address]) -> str:
    """Return the first of many addresses, and how many more there are."""
    texts = sorted(map(str, addresses))
    more = (
        f" and {len(texts) - MAX_ADDRESSES_SHOWN} more" if len(texts) > MAX_ADDRESSES_SHOWN else ""
    )
    return ", ".join(texts[:MAX_ADDRESSES_SHOWN]) + more


def _kept(
    wanted: Sequence[tuple[str, Service, Address]], existing: Sequence[Listener]
) -> dict[int, Listener]:
    """Return which of the wanted sockets are there already, by their number: those that are just
    as they are wanted go first, and of the others `adopt` changes what differs.
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
    """Return by what a socket is known: a file may have several names."""
    if not address.is_file:
        return address
    return (address.transport, file or file_at(address.path) or address.path)


def _kept_for(listener: Listener, name: str, service: Service, address: Address) -> Listener:
    """Return a listener with the same socket for another entry."""
    how = {key: getattr(address, key) for key in DETAILS_OF_EQUAL_ADDRESSES}
    if listener.file is not None:
        how["path"] = address.path
    bound = replace(listener.address, **how)
    return replace(listener, service=name, entry=service, configured=address, address=bound)


def _lost_files(
    wanted: Sequence[tuple[str, Service, Address]], existing: Sequence[Listener]
) -> Iterator[str]:
    """Tell of files that somebody has removed or replaced while we listened there."""
    lost = {
        one.configured for one in existing if one.file not in (None, file_at(one.configured.path))
    }
    for name, _, address in wanted:
        if address in lost:
            yield f"service.{name}: the file of {address} was removed or replaced; it is made anew"


def _end(address: Address) -> object:
    return (address.transport, address.family, address.port)


def reopen(closed: Listener) -> Listener:
    """Return a new listener on the address of one that was closed, since it was past mending.

    Raises OSError; as long as a worker holds the old socket, the address is in use.
    """
    listener = _listener(closed.service, closed.entry, closed.address, share=closed.shares_port)
    listener.start()
    return replace(listener, configured=closed.configured)


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
