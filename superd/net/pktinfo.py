"""Which local address a datagram came to, and answering from it (ip(7), ipv6(7), RFC 3542).

Runs in the master, which asks for it, and in workers. Never raises but for a broken socket.
"""

from __future__ import annotations

import socket
import struct

IP_PKTINFO = 8
IPV6_RECVPKTINFO = 49
IPV6_PKTINFO = 50

_IPV4 = struct.Struct("@i4s4s")  # interface, our address that is responsible, destination
_IPV6 = struct.Struct("@16sI")  # destination, interface

Ancillary = tuple[int, int, bytes]

SPACE = socket.CMSG_SPACE(_IPV6.size)


def ask_for_destination(sock: socket.socket) -> None:
    """Make the kernel tell the destination of each datagram of a wildcard socket."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)


def destination(ancillary: list[tuple[int, int, bytes]]) -> tuple[str, bool, list[Ancillary]]:
    """Return our address that was asked, whether it was asked as a single host, and the control
    message that makes an answer leave from it.

    A broadcast or multicast destination is not a single host. The host is empty where the kernel
    told nothing.
    """
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            _, ours, asked = _IPV4.unpack(data)
            answer = _IPV4.pack(0, ours, bytes(4))
            return socket.inet_ntoa(ours), ours == asked, [(level, kind, answer)]
        if level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO:
            asked, _ = _IPV6.unpack(data)
            host = socket.inet_ntop(socket.AF_INET6, asked)
            return host, asked[0] != 0xFF, [(level, kind, data)]
    return "", True, []
