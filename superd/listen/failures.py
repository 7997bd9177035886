"""Explains to the operator why an address cannot be bound, one error for each address.

Runs in the master and the command line. Never binds or closes a socket. Never raises.
"""

from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from superd.config.model import Service
from superd.errors import AddressInUse, NotPermitted, SuperdError, reason
from superd.listen.binding import file_at
from superd.listen.listener import Listener
from superd.listen.privileges import bind_remedy
from superd.net.addresses import Address


class TooManyAddresses(SuperdError):
    """The limit of open files is too low for the addresses."""


@dataclass
class Failures:
    """Errors while services are made to listen beside the listeners of `existing`.

    `opened` are the listeners so far. `in_use` are, by service, the addresses of port ranges that
    other processes have.
    """

    existing: Sequence[Listener]
    opened: list[Listener] = field(default_factory=list)
    errors: list[SuperdError] = field(default_factory=list)
    in_use: dict[str, set[Address]] = field(default_factory=dict)

    @contextlib.contextmanager
    def collect(self, name: str, service: Service, address: Address) -> Iterator[None]:
        """Add the OSError of a block that binds an address to the errors."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.EADDRINUSE and address.is_from_range:
                self.in_use.setdefault(name, set()).add(address)
            elif error.errno == errno.EADDRINUSE and (holder := self._holder(name, address)):
                self.errors.append(AddressInUse(f"{_start(name, address)}: {holder}"))
            else:
                self.errors.append(listen_error(error, name, service, address))

    def _holder(self, name: str, address: Address) -> str:
        """Return which service of superd itself listens there; "" if none does."""
        if (one := _find(self.opened, address)) is not None:
            return f"superd itself listens there for service.{one.service}"
        if (one := _find(self.existing, address)) is None:
            return ""
        commands = f"`superd disable {one.service}`"
        if one.service == name:
            commands += f", `superd reload` and `superd enable {name}`"
        else:
            commands += " and `superd reload`"
        return (
            f"superd itself listens there for service.{one.service} and cannot change that socket"
            f" while it is open; restart superd, or run {commands}"
        )


def _find(listeners: Iterable[Listener], address: Address) -> Listener | None:
    file = file_at(address.path)
    for one in listeners:
        is_file = file is not None and file in (one.file, file_at(one.address.path))
        if not one.is_closed and (is_file or one.address == address):
            return one
    return None


def listen_error(error: OSError, name: str, service: Service, address: Address) -> SuperdError:
    """Return the error for the operator, with the remedy."""
    start = _start(name, address)
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(f"{start}: the address is in use by another process")
    if error.errno == errno.EADDRNOTAVAIL:
        return SuperdError(
            f"{start}: this machine does not have the address;"
            " free-bind = true listens nevertheless"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return TooManyAddresses(
            f"{start} and all later addresses: superd may have at most {most} open files;"
            " raise that limit (LimitNOFILE=, ulimit -n)"
        )
    if error.errno == errno.ENODEV:
        return SuperdError(f"{start}: there is no network interface {service.device!r}")
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = bind_remedy(address)
        return NotPermitted(f"{start}: not permitted{remedy and f': {remedy}'}")
    if error.errno == errno.EEXIST:
        return SuperdError(f"{start}: the file there {error.strerror}")
    return SuperdError(f"{start}: {reason(error)}")


def _start(name: str, address: Address) -> str:
    return f"service.{name}: cannot listen on {address}"
