"""The local address that a datagram was sent to, to reply from it (ip(7), ipv6(7), RFC 3542).

Used by the master, which sets the socket option, and by workers. Raises OSError only for a broken
socket.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field, replace

from superd.net.addresses import Address

IP_PKTINFO = 8
IPV6_RECVPKTINFO = 49
IPV6_PKTINFO = 50

_IPV4 = struct.Struct("@i4s4s")  # struct in_pktinfo: interface, local address, destination
_IPV6 = struct.Struct("@16sI")  # struct in6_pktinfo: destination, interface
_LINK_LOCAL = b"\xfe\x80"

Ancillary = tuple[int, int, bytes]

# bytes; a dual-stack socket reports IPv4 in either form
ANCILLARY_BYTES = socket.CMSG_SPACE(_IPV6.size) + socket.CMSG_SPACE(_IPV4.size)


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """The local address of a datagram, and the ancillary data that makes a reply leave from it.

    `is_unicast` is False for a broadcast or a multicast. `is_loopback` means that the source is not
    forged by another machine: the kernel drops datagrams to a loopback address that arrive by
    another interface than lo (RFC 1122, 3.2.1.3; RFC 4291, 2.5.3), unless route_localnet is set.
    """

    address: Address
    is_unicast: bool = True
    control: tuple[Ancillary, ...] = ()
    is_loopback: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_loopback", self.address.is_loopback)


def enable_pktinfo(sock: socket.socket) -> None:
    """Have the kernel report the destination of each datagram of a wildcard socket."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        if sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            return
    sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)


def local_address(bound: Address, ancillary: tuple[Ancillary, ...]) -> LocalAddress:
    """Return the local address of a datagram to a wildcard socket; `bound` if none was reported."""
    for level, kind, data in sorted(ancillary):  # IPv4 first: IPv6 does not report a broadcast
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            _, ours, asked = _IPV4.unpack(data)
            if not any(ours):  # queued before the option was set, such as in an inherited socket
                ours = asked
            answer = _IPV4.pack(0, ours, bytes(4))
            address = replace(bound, host=socket.inet_ntop(socket.AF_INET, ours))
            return LocalAddress(address, ours == asked, ((level, kind, answer),))
        if (level, kind) == (socket.IPPROTO_IPV6, IPV6_PKTINFO):
            asked, interface = _IPV6.unpack(data)
            if not asked.startswith(_LINK_LOCAL):
                interface = 0  # the reply may leave by another interface
            answer = _IPV6.pack(asked, interface)
            address = replace(bound, host=socket.inet_ntop(socket.AF_INET6, asked))
            return LocalAddress(address, asked[0] != 0xFF, ((level, kind, answer),))
    return LocalAddress(bound)
