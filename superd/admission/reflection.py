"""The reflection guard refuses datagrams whose answers could attack a third party or superd itself
(the services of RFC 862 to 868 are the classic means).

Runs in workers, for each datagram. A pure function of the guard and the datagram's addresses. Never
raises.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from superd.admission.refusals import Refusal

LOWEST_CLIENT_PORT = 1024
NFS = 2049  # OpenBSD's inetd also refuses this port, as the only one above 1023


class ReflectionGuard:
    """Refuses sources that are ports of services, or not a single host.

    `served_names` are the names of superd's own unixgram sockets. A path may lead to another socket
    by the time of the answer, so an answer can reach superd itself; it is then refused, because it
    comes from one of these names.
    """

    def __init__(
        self, served_ports: Iterable[int], served_names: Iterable[str | bytes] = ()
    ) -> None:
        self.ports = frozenset([*range(LOWEST_CLIENT_PORT), NFS, *served_ports])
        self.names = frozenset(served_names)

    def refusal(self, host: str, port: int, to_one_host: bool) -> Refusal | None:
        """Return why a datagram from `host` and `port` is not answered, or None if it is."""
        if port in self.ports:
            return Refusal.SOURCE_PORT
        if not to_one_host:
            return Refusal.DESTINATION
        if not is_single_host(host):
            return Refusal.SOURCE_ADDRESS
        return None

    def unix_refusal(self, name: str | bytes | None) -> Refusal | None:
        """The same for a datagram from a unix socket of that name."""
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
