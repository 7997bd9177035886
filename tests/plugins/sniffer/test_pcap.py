"""Capture files as other programs read them, and checksums against a second implementation."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from superd_sniffer.pcap import Endpoint, header, packet_of_datagram, packets_of_stream

from tests.support.programs import output

PEER, LOCAL = ("192.0.2.1", 40000), ("198.51.100.7", 2323)
PEER6, LOCAL6 = ("2001:db8::1", 40000), ("fe80::7%eth0", 2323)
AT = 1_700_000_000_123_456_789
BOTH = pytest.mark.parametrize(("peer", "local"), [(PEER, LOCAL), (PEER6, LOCAL6)])
ENDPOINTS = st.tuples(st.ip_addresses().map(str), st.integers(0, 65535))


def packets(records: bytes) -> Iterator[bytes]:
    """Yield the packets of the records."""
    while records:
        seconds, nanoseconds, size, original = struct.unpack_from("=IIII", records)
        assert size == original
        assert seconds * 10**9 + nanoseconds == AT
        yield records[16 : 16 + size]
        records = records[16 + size :]


def summed(data: bytes) -> int:
    """Return the sum of RFC 1071: all bits are set for data with a valid checksum."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def segment(packet: bytes) -> bytes:
    """Check a packet's lengths and checksums, and return what follows its IP header."""
    if packet[0] >> 4 == 4:
        assert summed(packet[:20]) == 0xFFFF
        assert int.from_bytes(packet[2:4], "big") == len(packet)
        protocol, hosts, rest = packet[9], packet[12:20], packet[20:]
    else:
        assert int.from_bytes(packet[4:6], "big") == len(packet) - 40
        protocol, hosts, rest = packet[6], packet[8:40], packet[40:]
    assert summed(hosts + struct.pack("!II", len(rest), protocol) + rest) == 0xFFFF
    return rest


@given(ENDPOINTS, ENDPOINTS, st.binary(max_size=5000))
def test_checksums_are_correct(peer: Endpoint, local: Endpoint, data: bytes) -> None:
    captured = b""
    for packet in packets(packets_of_stream(peer, local, data, at=AT)):
        captured += segment(packet)[20:]
    assert captured == data
    (packet,) = packets(packet_of_datagram(peer, local, data, at=AT))
    assert segment(packet)[8:] == data


def test_a_checksum_of_zero_is_written_as_all_ones() -> None:
    for number in range(65536):  # one of them makes the checksum 0
        record = packet_of_datagram(PEER, LOCAL, number.to_bytes(2, "big"), at=AT)
        assert record[16 + 26 : 16 + 28] != b"\0\0"


@BOTH
def test_a_stream_has_a_handshake_and_acknowledged_segments(
    peer: Endpoint, local: Endpoint
) -> None:
    segments = [segment(one) for one in packets(packets_of_stream(peer, local, b"hello", at=AT))]
    fields = [struct.unpack_from("!HHIIBB", one) for one in segments]
    start = AT // 4000 & 0xFFFFFFFF
    there, back = (peer[1], local[1]), (local[1], peer[1])
    assert [one[:2] for one in fields] == [there, back, there, there, back]
    assert [(one[2] - start, max(one[3] - start, 0), one[5]) for one in fields] == [
        (0, 0, 0x02), (0, 1, 0x12), (1, 1, 0x10), (1, 1, 0x18), (1, 6, 0x10),
    ]  # fmt: skip


def test_sequence_numbers_wrap_to_zero() -> None:
    at = 0xFFFFFFFF * 4000
    records = packets_of_stream(PEER, LOCAL, b"hello", at=at)
    assert records[16 + 24 : 16 + 28] == b"\xff\xff\xff\xff"
    assert b"hello" in records


def test_a_connection_without_data_is_a_handshake() -> None:
    assert len(list(packets(packets_of_stream(PEER, LOCAL, b"", at=AT)))) == 3


def test_mixed_families_become_ipv6_and_mapped_addresses_ipv4() -> None:
    (packet,) = packets(packet_of_datagram(("::ffff:192.0.2.1", 1), LOCAL, b"x", at=AT))
    assert packet[0] == 0x45
    (packet,) = packets(packet_of_datagram(PEER6, LOCAL, b"x", at=AT))
    assert packet[0] == 0x60
    assert packet[24:40] == bytes(10) + b"\xff\xff" + bytes([198, 51, 100, 7])


@BOTH
def test_a_datagram_is_limited_to_the_size_of_a_packet(peer: Endpoint, local: Endpoint) -> None:
    (packet,) = packets(packet_of_datagram(peer, local, bytes(1 << 16), at=AT))
    assert 65000 < len(packet) <= 65535
    segment(packet)


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    file = tmp_path / "captured.pcap"
    request = b"GET /knock HTTP/1.0\r\n\r\n"
    file.write_bytes(
        header()
        + packets_of_stream(PEER, LOCAL, request, at=AT)
        + packets_of_stream((PEER[0], 40001), LOCAL, bytes(1 << 16), at=AT + 10**9)
        + packets_of_stream(PEER6, LOCAL6, request, at=AT + 2 * 10**9)
        + packet_of_datagram(PEER, LOCAL, b"knock", at=AT + 3 * 10**9)
        + packet_of_datagram(PEER6, LOCAL6, bytes(1 << 16), at=AT + 4 * 10**9)
    )
    return file


@pytest.mark.tool("tcpdump")
def test_tcpdump_accepts_the_file(capture: Path) -> None:
    command = ["tcpdump", "--nano", "-tt", "-nvvr", str(capture)]
    lines = output(*command).decode()
    assert "1700000000.123456789 IP" in lines
    assert "192.0.2.1.40000 > 198.51.100.7.2323: Flags [S], cksum" in lines
    assert "2001:db8::1.40000 > fe80::7.2323: Flags [P.]" in lines
    assert "correct" in lines
    assert "incorrect" not in lines
    assert "[udp sum ok]" in lines
    assert "bad" not in lines
    assert "truncated" not in lines


@pytest.mark.tool("tshark")
def test_tshark_accepts_the_file(capture: Path) -> None:
    checks = [f"-o{name}.check_checksum:TRUE" for name in ("ip", "tcp", "udp")]
    command = ["tshark", *checks, "-r", str(capture)]
    http = ["-dtcp.port==2323,http", "-Yhttp", "-Tfields", "-ehttp.request.uri"]
    assert output(*command, *http).split() == [b"/knock", b"/knock"]
    unknown = ["-dtcp.port==2323,data", "-dudp.port==2323,data"]
    worse = "_ws.expert.severity > 0x200000"  # above notes
    assert output(*command, *unknown, f"-Y{worse}") == b""
