"""Opens the listeners of all services.

Runs in the master and the command line. Never accepts a connection or reads a datagram. Raises
CannotListen for addresses that cannot be bound.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from superd.config.model import Service
from superd.listen.binding import file_at
from superd.listen.failures import CannotListen, Failure
from superd.listen.listener import Listener
from superd.listen.names import NO_ANSWERS, Answers, hosts_of
from superd.listen.opening import Opening, Wanted, open_listener
from superd.net.addresses import ANY_IPV6, Address


def listen(
    services: Mapping[str, Service],
    existing: Sequence[Listener] = (),
    notices: list[str] | None = None,
    answers: Answers = NO_ANSWERS,
    *,
    serves_others: bool = False,
) -> list[Listener]:
    """Bind every address of every service, or none; then listen.

    With `serves_others` an address that cannot be bound becomes a pending one: a listener that is
    closed and has a failure. Then it is an error only if no address at all can be bound. An address
    that was pending in `existing` already may stay so in any case.

    Left out are ports of a range that other processes have, and of the addresses of a name those
    that this machine does not have; `notices` names them. `answers` has the hosts of names. Where
    it has none, a name keeps the hosts that it has in `existing`.

    A listener of `existing` with a wanted address keeps its socket, which belongs to the returned
    listener once `adopt` is called. Until then only its SO_REUSEPORT is changed. A listener that is
    closed stays closed: another process may hold its address, which is no reason to fail the
    others.

    Services may share a port on different local addresses. Linux accepts a specific address beside
    the wildcard only with SO_REUSEPORT on both. That option would also let a second superd of the
    same user share the port silently, so such addresses are first bound without it, as a test.
    """
    known = _known_hosts(existing)
    wanted = [
        (name, service, address)
        for name, service in services.items()
        for listed in service.listen
        for address in _hosts_or_known(listed, answers, known)
    ]
    notices = [] if notices is None else notices
    opening = Opening(wanted, existing, answers, notices)
    were_pending = {one.configured.listed for one in existing if one.failure is not None}

    def refused() -> list[Failure]:
        failures = opening.fatal or list(opening.failures.values())
        if opening.fatal or (serves_others and not opening.is_reachable):
            return failures
        if serves_others:
            return []
        return [one for one in failures if one.address.listed not in were_pending]

    opening.bind(_kept(wanted, existing))
    if not refused():
        opening.start()
    notices += _lost_files(wanted, existing)
    if failures := refused():
        opening.close()
        raise CannotListen(failures)
    return opening.result()


def listen_again(
    pending: Sequence[Listener],
    existing: Sequence[Listener],
    notices: list[str],
    answers: Answers = NO_ANSWERS,
) -> list[Listener]:
    """Try to bind pending addresses beside the listeners of `existing`; return a listener for each,
    which is pending again where that failed. A name has the hosts of its answer, if there is one.
    """
    wanted = {
        (one.service, address): (one.service, one.entry, address)
        for one in pending
        for address in _hosts_again(one.configured, answers)
    }
    before = {(one.service, one.configured): one.failure for one in pending if one.failure}
    opening = Opening(list(wanted.values()), existing, answers, notices, before)
    opening.bind({})
    if opening.fatal:
        opening.close()
        return list(pending)
    opening.start()
    return opening.result()


def _known_hosts(existing: Iterable[Listener]) -> dict[Address, list[Address]]:
    """Return by address with a name those at the hosts that the name has now."""
    known: dict[Address, list[Address]] = {}
    for one in existing:
        if one.configured.listed.is_name and not one.configured.is_name:
            known.setdefault(one.configured.listed, []).append(one.configured)
    return known


def _hosts_or_known(
    listed: Address, answers: Answers, known: Mapping[Address, Sequence[Address]]
) -> Sequence[Address]:
    found = sockets_of(listed, answers)
    has_no_answer = listed.is_name and found == (listed,)
    return known.get(listed, found) if has_no_answer else found


def _hosts_again(pending: Address, answers: Answers) -> Sequence[Address]:
    """Return the addresses to try for a pending one, whose name may have other hosts now."""
    listed = pending.listed
    return _hosts_or_known(listed, answers, {listed: [pending]}) if listed.is_name else (pending,)


def _kept(wanted: Sequence[Wanted], existing: Sequence[Listener]) -> dict[int, Listener]:
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


def _lost_files(wanted: Sequence[Wanted], existing: Sequence[Listener]) -> Iterator[str]:
    """Yield a notice for each socket file that another process removed or replaced."""
    lost = {
        one.configured for one in existing if one.file not in (None, file_at(one.configured.path))
    }
    for name, _, address in wanted:
        if address in lost:
            what = f"the file of {address} was removed or replaced"
            yield f"service.{name}: {what}; superd makes it again"


def reopen(closed: Listener) -> Listener:
    """Return a new listener on the address of one that was closed as beyond repair.

    Raises OSError, such as EADDRINUSE as long as a worker holds the old socket.
    """
    listener = open_listener(closed.service, closed.entry, closed.address, share=closed.shares_port)
    listener.start()
    return replace(listener, configured=closed.configured)


def sockets_of(address: Address, answers: Answers = NO_ANSWERS) -> tuple[Address, ...]:
    """Return one address for each socket: a name has all of its hosts, and "*" is IPv4, and IPv6 if
    this machine has it.
    """
    if address.is_name:
        return hosts_of(address, answers)
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
