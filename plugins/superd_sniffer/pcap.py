"""Captured data as packets of a capture file (draft-ietf-opsawg-pcap), with synthesized headers.

The packets have the data that the kernel delivered, and not the segments of the wire: a stream has
the handshake of RFC 9293 (3.5) and its bytes in segments of a fixed size, without options, and
every packet has the same time to live. Never writes a file; unix sockets have no packets.
"""

from __future__ import annotations

import ipaddress
import struct

Endpoint = tuple[str, int]  # a numeric host and a port

_MAGIC_NANOSECONDS = 0xA1B23C4D
_LINKTYPE_RAW = 101  # packets begin with an IP header of version 4 or 6
_MAX_PACKET_BYTES = 65535
_SEGMENT_BYTES = 1220  # fits every path of IPv6, with the headers (RFC 8200, 5)
_MAX_DATAGRAM_BYTES = _MAX_PACKET_BYTES - 48
_WINDOW = 65535
_TTL = 64
_TCP, _UDP = 6, 17
_SYN, _PSH, _ACK = 0x02, 0x08, 0x10


def header() -> bytes:
    """Return the header of a file."""
    return struct.pack("=IHHiIII", _MAGIC_NANOSECONDS, 2, 4, 0, 0, _MAX_PACKET_BYTES, _LINKTYPE_RAW)


def packets_of_stream(peer: Endpoint, local: Endpoint, data: bytes, *, at: int) -> bytes:
    """Return the records of a connection from `peer`: the handshake and the data that it sent.

    `at` is the time in nanoseconds since the epoch. Sequence numbers begin with the time in units
    of 4 microseconds (RFC 9293, 3.4.1), which distinguishes connections from one port.
    """
    ends = _Ends(peer, local)
    back = ends.reversed()
    ours = theirs = at // 4000 & 0xFFFFFFFF
    records = [
        _record(ends.tcp(theirs, 0, _SYN), at),
        _record(back.tcp(ours, theirs + 1, _SYN | _ACK), at),
        _record(ends.tcp(theirs + 1, ours + 1, _ACK), at),
    ]
    for start in range(0, len(data), _SEGMENT_BYTES):
        segment = data[start : start + _SEGMENT_BYTES]
        end = theirs + 1 + start + len(segment)
        records += [
            _record(ends.tcp(end - len(segment), ours + 1, _PSH | _ACK, segment), at),
            _record(back.tcp(ours + 1, end, _ACK), at),
        ]
    return b"".join(records)


def packet_of_datagram(peer: Endpoint, local: Endpoint, data: bytes, *, at: int) -> bytes:
    """Return the record of a datagram from `peer`. Excess data is cut off."""
    return _record(_Ends(peer, local).udp(data[:_MAX_DATAGRAM_BYTES]), at)


class _Ends:
    """The source and the destination of a packet."""

    def __init__(self, source: Endpoint, destination: Endpoint) -> None:
        hosts = _packed(source[0]), _packed(destination[0])
        if len(hosts[0]) != len(hosts[1]):  # an IPv6 socket with an IPv4 client
            hosts = _as_ipv6(hosts[0]), _as_ipv6(hosts[1])
        self._hosts = hosts
        self._ports = source[1], destination[1]

    def reversed(self) -> _Ends:
        back = _Ends.__new__(_Ends)
        back._hosts = self._hosts[1], self._hosts[0]
        back._ports = self._ports[1], self._ports[0]
        return back

    def tcp(self, sequence: int, acknowledged: int, flags: int, data: bytes = b"") -> bytes:
        numbers = sequence & 0xFFFFFFFF, acknowledged & 0xFFFFFFFF
        head = struct.pack("!HHIIBBH", *self._ports, *numbers, 5 << 4, flags, _WINDOW)
        return self._packet(_TCP, head, b"\0\0" + data)

    def udp(self, data: bytes) -> bytes:
        return self._packet(_UDP, struct.pack("!HHH", *self._ports, 8 + len(data)), data)

    def _packet(self, protocol: int, head: bytes, tail: bytes) -> bytes:
        """Put the checksum between head and tail of a segment, and the IP header in front."""
        size = len(head) + 2 + len(tail)
        pseudo = b"".join(self._hosts) + struct.pack("!IBBH", size, 0, 0, protocol)
        checksum = _checksum(pseudo + head + b"\0\0" + tail)
        if protocol == _UDP:
            checksum = checksum or 0xFFFF  # 0 would mean that there is none (RFC 768)
        return self._ip(protocol, size) + head + checksum.to_bytes(2, "big") + tail

    def _ip(self, protocol: int, size: int) -> bytes:
        hosts = b"".join(self._hosts)
        if len(hosts) == 32:
            return struct.pack("!IHBB", 6 << 28, size, protocol, _TTL) + hosts
        start = struct.pack("!BBHHHBB", 0x45, 0, 20 + size, 0, 0x4000, _TTL, protocol)
        return start + _checksum(start + hosts).to_bytes(2, "big") + hosts


def _packed(host: str) -> bytes:
    number = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(number, ipaddress.IPv6Address) and number.ipv4_mapped:
        return number.ipv4_mapped.packed
    return number.packed


def _as_ipv6(packed: bytes) -> bytes:
    return packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    # modulo 0xFFFF, a number is congruent to the sum of its 16-bit digits
    total = int.from_bytes(data, "big") % 0xFFFF
    return 0xFFFF ^ (total or (0xFFFF if any(data) else 0))


def _record(packet: bytes, at: int) -> bytes:
    seconds, nanoseconds = divmod(at, 1_000_000_000)
    return (
        struct.pack("=IIII", seconds & 0xFFFFFFFF, nanoseconds, len(packet), len(packet)) + packet
    )
