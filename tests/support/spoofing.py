"""Sends datagrams with a forged source, and captures the datagrams on a loopback. Needs root.

For a test's own network namespace only, so that no forged datagram reaches another host.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from tests.support.harness import Address

IPV6_HDRINCL = 36
ETH_P_ALL = 3
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
RECEIVE_BUFFER_BYTES = 1 << 24


class Datagram(NamedTuple):
    """A captured datagram."""

    source: Address
    target: Address
    data: bytes


def spoof(source: Address, target: Address, data: bytes = b"hello") -> None:
    """Send one datagram to `target` that claims to come from `source`."""
    ends = [ipaddress.ip_address(host).packed for host in (source[0], target[0])]
    length = 8 + len(data)
    udp = struct.pack("!HHHH", source[1], target[1], length, 0) + data
    if len(ends[0]) == 4:
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + length, 0, 0, 64, 17, 0, *ends)
        family, level, option = socket.AF_INET, socket.IPPROTO_IP, socket.IP_HDRINCL
    else:
        pseudo = b"".join(ends) + struct.pack("!II", length, 17)
        udp = udp[:6] + struct.pack("!H", _checksum(pseudo + udp)) + udp[8:]
        head = struct.pack("!IHBB16s16s", 6 << 28, length, 17, 64, *ends)
        family, level, option = socket.AF_INET6, socket.IPPROTO_IPV6, IPV6_HDRINCL
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.setsockopt(level, option, 1)
        raw.sendto(head + udp, (target[0], 0))


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF


class Capture:
    """Captures all packets on the loopback from its creation on."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self.socket.setblocking(False)

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def datagrams(self) -> list[Datagram]:
        """Return the udp datagrams since the last call."""
        return list(self._datagrams())

    def _datagrams(self) -> Iterator[Datagram]:
        while True:
            try:
                packet, (_, protocol, kind, *_) = self.socket.recvfrom(1 << 16)
            except BlockingIOError:
                return
            if kind == socket.PACKET_OUTGOING:
                continue  # a loopback shows each packet twice
            if protocol == ETH_P_IP and packet[9] == socket.IPPROTO_UDP:
                ends, udp = packet[12:20], packet[(packet[0] & 15) * 4 :]
            elif protocol == ETH_P_IPV6 and packet[6] == socket.IPPROTO_UDP:
                ends, udp = packet[8:40], packet[40:]
            else:
                continue
            half = len(ends) // 2
            hosts = [str(ipaddress.ip_address(end)) for end in (ends[:half], ends[half:])]
            from_port, to_port = struct.unpack("!HH", udp[:4])
            yield Datagram((hosts[0], from_port), (hosts[1], to_port), udp[8:])
