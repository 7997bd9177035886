"""chargen (RFC 864): lines of 72 characters from a ring of 95, each shifted by one."""

from __future__ import annotations

import socket

import pytest

from tests.conftest import Start
from tests.support.clients import connect_unix
from tests.support.harness import Superd, ask_udp
from tests.support.strangers import stranger

TOML = """
[service.chargen]
plugin = "chargen"
listen = [
    "tcp://127.0.0.1:0",
    "udp://127.0.0.1:0",
    "unix://{directory}/stream",
    "unixpacket://{directory}/packet",
]

[service.generous]
plugin = "chargen"
listen = "udp://127.0.0.1:0"
amplify = true
"""

LINE = 74


def line(number: int) -> bytes:
    """Return a line of the RFC's example; line 0 begins with a space."""
    return bytes(32 + (number + i) % 95 for i in range(72)) + b"\r\n"


def pattern(lines: int) -> bytes:
    return b"".join(line(number) for number in range(lines))


def read(client: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size and (part := client.recv(size - len(parts))):
        parts += part
    return bytes(parts)


def test_the_first_lines_match_the_rfc() -> None:
    assert line(0).startswith(b" !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFG")
    assert line(1).startswith(b"!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGH")


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_the_pattern_continues_around_the_ring(served: Superd, transport: str) -> None:
    lines = 95 * 40 + 3
    tcp = transport == "tcp"
    client = served.connect("chargen") if tcp else connect_unix(served.directory / "stream")
    with client:
        assert read(client, lines * LINE) == pattern(lines)


def test_packets_contain_whole_lines(served: Superd) -> None:
    with connect_unix(served.directory / "packet", socket.SOCK_SEQPACKET) as client:
        data = client.recv(1 << 18) + client.recv(1 << 18)
    assert data == pattern(len(data) // LINE)


def test_input_is_discarded(served: Superd) -> None:
    with served.connect("chargen") as client:
        for _ in range(20):
            client.sendall(b"is there a server?\r\n" * 100)
        assert read(client, 2000 * LINE) == pattern(2000)


def test_a_client_that_has_half_closed_still_receives(served: Superd) -> None:
    with served.connect("chargen") as client:
        client.shutdown(socket.SHUT_WR)
        assert read(client, 2000 * LINE) == pattern(2000)


@pytest.mark.root
@pytest.mark.tool("ip")
def test_an_answer_is_no_longer_than_its_datagram_and_than_512_bytes(
    start_superd: Start,
) -> None:
    with stranger(start_superd, "chargen") as (_, client):
        for size in (0, 1, 72, 100, 511, 512, 513, 1400) * 5:
            client.send(bytes(size))
            answer = client.recv(2048)
            assert len(answer) <= min(size, 512)
            assert answer == pattern(7)[: len(answer)]


def test_the_length_of_a_datagram_is_random_up_to_512(served: Superd) -> None:
    lengths = {len(ask_udp(served.address("generous", "udp"), b"")) for _ in range(200)}
    assert max(lengths) <= 512
    assert len(lengths) > 50  # 200 draws from 513 values: fewer is practically impossible
