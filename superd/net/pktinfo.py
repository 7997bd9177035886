"""Which local address a datagram came to, and answering from it (ip(7), ipv6(7), RFC 3542).

Runs in the master, which asks for it, and in workers. Never raises but for a broken socket.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, replace

from superd.net.addresses import Address

IP_PKTINFO = 8
IPV6_RECVPKTINFO = 49
IPV6_PKTINFO = 50

_IPV4 = struct.Struct("@i4s4s")  # interface, our address that is responsible, destination
_IPV6 = struct.Struct("@16sI")  # destination, interface
_LINK_LOCAL = b"\xfe\x80"

Ancillary = tuple[int, int, bytes]

# a socket for both tells of IPv4 in either form
ANCILLARY_BYTES = socket.CMSG_SPACE(_IPV6.size) + socket.CMSG_SPACE(_IPV4.size)


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """Where a datagram came to.

    `is_unicast` is False for a broadcast or multicast; `control` makes an answer leave from here.
    """

    address: Address
    is_unicast: bool = True
    control: tuple[Ancillary, ...] = ()


def enable_pktinfo(sock: socket.socket) -> None:
    """Make the kernel tell the destination of each datagram of a wildcard socket."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        if sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            return
    sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)


def local_address(bound: Address, ancillary: tuple[Ancillary, ...]) -> LocalAddress:
    """Return where a datagram to a wildcard socket came to; `bound`, if the kernel did not tell."""
    for level, kind, data in sorted(ancillary):  # IPv4 first: only there a broadcast can be known
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            _, ours, asked = _IPV4.unpack(data)
            if not any(ours):  # it came before the kernel was asked, in the time of another process
                ours = asked
            answer = _IPV4.pack(0, ours, bytes(4))
            address = replace(bound, host=socket.inet_ntop(socket.AF_INET, ours))
            return LocalAddress(address, ours == asked, ((level, kind, answer),))
        if (level, kind) == (socket.IPPROTO_IPV6, IPV6_PKTINFO):
            asked, interface = _IPV6.unpack(data)
            if not asked.startswith(_LINK_LOCAL):
                interface = 0  # the way back may be another
            answer = _IPV6.pack(asked, interface)
            address = replace(bound, host=socket.inet_ntop(socket.AF_INET6, asked))
            return LocalAddress(address, asked[0] != 0xFF, ((level, kind, answer),))
    return LocalAddress(bound)
