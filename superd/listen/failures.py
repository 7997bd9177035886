"""Explains to the operator why addresses cannot be bound: one line for each cause.

Runs in the master and the command line. Never binds or closes a socket. Never raises.
"""

from __future__ import annotations

import errno
import resource
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from superd.config.model import Service
from superd.errors import ExitCode, SuperdError, reason
from superd.listen.names import Answer
from superd.listen.privileges import bind_remedy
from superd.net.addresses import ANY_IPV4, ANY_IPV6, Address

MAX_ADDRESSES_SHOWN = 5  # of one cause; a range of ports counts as one
# errors of bind(2): the machine does not have the address, or not its family
NOT_HERE_ERRNOS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
TOO_MANY_FILES_ERRNOS = (errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True)
class Failure:
    """Why one address of a service is not bound, with the remedy, and the key that would change it.

    `is_not_here`: the machine does not have the address.
    """

    service: str
    address: Address
    cause: str
    exit_code: ExitCode = ExitCode.FAILED
    key: str = "listen"
    is_not_here: bool = False

    @property
    def is_in_use(self) -> bool:
        return self.exit_code is ExitCode.ADDRESS_IN_USE


class CannotListen(SuperdError):
    """Addresses cannot be bound; the first of them decides the exit code."""

    def __init__(self, failures: Iterable[Failure], lines: Iterable[str] | None = None) -> None:
        self.failures = list(failures)
        self.exit_code = self.failures[0].exit_code
        super().__init__("\n".join(lines_of(self.failures) if lines is None else lines))


def lines_of(
    failures: Iterable[Failure],
    place: Callable[[Failure], str] = lambda failure: f"service.{failure.service}",
) -> list[str]:
    """Return one line for all addresses with the same place and cause."""
    return [f"{where}: cannot listen on {all_}: {why}" for where, all_, why in grouped(
        failures, place)]  # fmt: skip


def grouped(
    failures: Iterable[Failure], key: Callable[[Failure], str]
) -> Iterator[tuple[str, str, str]]:
    """Yield key, addresses and cause of all failures that have the same key and cause."""
    groups: dict[tuple[str, str], list[Address]] = {}
    for failure in failures:
        groups.setdefault((key(failure), failure.cause), []).append(failure.address)
    for (where, cause), addresses in groups.items():
        yield where, shown_addresses(addresses), cause


def shown_addresses(addresses: Iterable[Address]) -> str:
    """Return addresses as text, with ranges of ports and "*", and how many more there are."""
    hosts: dict[Address, set[str]] = defaultdict(set)
    for address in addresses:
        hosts[address.listed].add(address.host)
    merged: dict[Address, list[int]] = {}  # by an address with port 0: the ports
    for listed, found in hosts.items():
        shown = {"*"} if found == {ANY_IPV4, ANY_IPV6} else found
        for host in sorted(shown):
            one = Address(listed.transport, host, 0, listed.path)
            merged.setdefault(one, []).append(listed.port)
    texts = [
        _with_ports(str(one), run) for one, ports in merged.items() for run in _runs(sorted(ports))
    ]
    more = len(texts) - MAX_ADDRESSES_SHOWN
    return ", ".join(texts[:MAX_ADDRESSES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _runs(ports: list[int]) -> Iterator[range]:
    """Yield the ranges that sorted ports make up."""
    first = 0
    for number, port in enumerate(ports):
        if number + 1 == len(ports) or ports[number + 1] != port + 1:
            yield range(ports[first], port + 1)
            first = number + 1


def _with_ports(text: str, ports: range) -> str:
    """Return the text of an address, whose port is 0, with these ports."""
    start = text.removesuffix(":0")
    if start == text:  # of a unix socket or tcpmux
        return text
    if len(ports) == 1:
        return f"{start}:{ports[0]}"
    return f"{start}:{ports[0]}-{ports[-1]} ({len(ports):,} ports)"


def failure_of(
    error: OSError,
    name: str,
    service: Service,
    address: Address,
    holders: str = "another process",
) -> Failure:
    """Return why an address could not be bound, with the remedy; `holders` has it already."""
    number = error.errno
    if number == errno.EADDRINUSE:
        return in_use(name, address, f"the address is in use by {holders}")
    if number in NOT_HERE_ERRNOS:
        text = "this machine does not have the address; free-bind = true listens nevertheless"
        if number == errno.EAFNOSUPPORT:
            text = f"this machine has no IPv{6 if ':' in address.host else 4}"
        return Failure(name, address, text, is_not_here=True)
    if number in TOO_MANY_FILES_ERRNOS:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        text = (
            f"superd may have at most {most} open files, too few for this address and all later"
            " ones; raise that limit (LimitNOFILE=, ulimit -n)"
        )
        return Failure(name, address, text)
    if number == errno.ENODEV and service.device:
        text = f'there is no network interface "{service.device}"'
        return Failure(name, address, text, key="device")
    if number == errno.ENODEV and "%" in address.host:
        text = f'there is no network interface "{address.host.partition("%")[2]}"'
        return Failure(name, address, text)
    if number in (errno.EACCES, errno.EPERM):
        remedy = bind_remedy(address)
        text = f"not permitted{remedy and f': {remedy}'}"
        return Failure(name, address, text, ExitCode.NOT_PERMITTED)
    if number == errno.EEXIST:
        return Failure(name, address, f"the file there {error.strerror}")
    return Failure(name, address, reason(error))


def in_use(name: str, address: Address, cause: str) -> Failure:
    """Return the failure of an address that has a socket already."""
    return Failure(name, address, cause, ExitCode.ADDRESS_IN_USE)


def not_found(name: str, address: Address, answer: Answer) -> Failure:
    """Return the failure of an address whose name has no address."""
    return Failure(name, address, answer.failure, answer.exit_code)
