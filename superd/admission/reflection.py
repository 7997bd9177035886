"""The reflection guard: which datagrams are never answered, so that superd cannot be made to
attack others or itself (RFC 862 to 868 services are the classic means).

Runs in workers, for each datagram. A pure function of the guard and the datagram's ends; never
raises.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from superd.admission.refusals import Refusal

LOWEST_CLIENT_PORT = 1024
NFS = 2049  # the one service above 1024 that OpenBSD's inetd guards too


class ReflectionGuard:
    """Refuses sources that are services themselves, or not a single host. `served_names` are those
    of superd's own unix sockets: where a name leads to may change before it is answered, and so an
    answer may come to us, but it comes from one of these.
    """

    def __init__(
        self, served_ports: Iterable[int], served_names: Iterable[str | bytes] = ()
    ) -> None:
        self.ports = frozenset([*range(LOWEST_CLIENT_PORT), NFS, *served_ports])
        self.names = frozenset(served_names)

    def refusal(self, host: str, port: int, to_one_host: bool) -> Refusal | None:
        """Return why a datagram from `host` and `port` gets no answer, or None if it may."""
        if port in self.ports:
            return Refusal.SOURCE_PORT
        if not to_one_host:
            return Refusal.DESTINATION
        if not is_single_host(host):
            return Refusal.SOURCE_ADDRESS
        return None

    def unix_refusal(self, name: str | bytes | None) -> Refusal | None:
        """Return why a datagram from a unix socket of that name gets no answer, or None."""
        return Refusal.SOURCE_ADDRESS if name in self.names else None


@lru_cache(maxsize=4096)
def is_single_host(host: str) -> bool:
    """Tell whether a numeric host can be one machine: not broadcast, multicast or unspecified."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if address.is_multicast or address.is_unspecified:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return address.packed[0] != 0 and address.packed[0] < 240
    return True
