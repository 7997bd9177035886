"""What became of binding, in words: each address that could not be had, and why.

Runs in the master. Never binds or closes anything. Never raises.
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
    """There are more addresses than descriptors."""


@dataclass
class Failures:
    """What goes wrong while services are made to listen beside those of `existing`; `found` has
    what they listen on so far.
    """

    existing: Sequence[Listener]
    found: list[Listener] = field(default_factory=list)
    told: list[SuperdError] = field(default_factory=list)
    taken: dict[str, set[Address]] = field(default_factory=dict)  # by others, of ranges, by service

    @contextlib.contextmanager
    def gathered(self, name: str, service: Service, address: Address) -> Iterator[None]:
        """Note why an address cannot be bound."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.EADDRINUSE and address.is_from_range:
                self.taken.setdefault(name, set()).add(address)
            elif error.errno == errno.EADDRINUSE and (holder := self._holder(name, address)):
                self.told.append(AddressInUse(f"{_start(name, address)}: {holder}"))
            else:
                self.told.append(explained(error, name, service, address))

    def _holder(self, name: str, address: Address) -> str:
        """Return how superd itself is in the way; nothing where it is not."""
        if (one := _with_address(self.found, address)) is not None:
            return f"superd itself has the address, under service.{one.service}"
        if (one := _with_address(self.existing, address)) is None:
            return ""
        anew = f" and `superd enable {name}`" if one.service == name else ""
        return (
            f"superd itself has the address, under service.{one.service}, and cannot go over to"
            f" this: it takes a stop and a start, or `superd disable {one.service}` and then a"
            f" reload{anew}"
        )


def _with_address(listeners: Iterable[Listener], address: Address) -> Listener | None:
    file = file_at(address.path)
    for one in listeners:
        is_file = file is not None and file in (one.file, file_at(one.address.path))
        if not one.is_closed and (is_file or one.address == address):
            return one
    return None


def explained(error: OSError, name: str, service: Service, address: Address) -> SuperdError:
    """Return why a service cannot listen on an address, for the operator."""
    start = _start(name, address)
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
        remedy = bind_remedy(address)
        return NotPermitted(f"{start}: not permitted{remedy and f': {remedy}'}")
    if error.errno == errno.EEXIST:
        return SuperdError(f"{start}: the file there {error.strerror}")
    return SuperdError(f"{start}: {reason(error)}")


def _start(name: str, address: Address) -> str:
    return f"service.{name}: cannot listen on {address}"
