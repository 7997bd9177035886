"""echo (RFC 862): every byte is sent back, in order, until the end of input."""

from __future__ import annotations

import random
import socket

import pytest

from tests.support.clients import (
    ask_unixgram,
    ask_unixpacket,
    connect_unix,
    exchange_digests,
    receive_to_end,
)
from tests.support.harness import Superd, ask_udp, exchange, receive_all

TOML = """
[service.echo]
plugin = "echo"
listen = [
    "tcp://127.0.0.1:0",
    "udp://127.0.0.1:0",
    "unix://{directory}/stream",
    "unixpacket://{directory}/packet",
    "unixgram://{directory}/datagram",
]
"""

BULK = random.Random(7).randbytes(8 << 20)
SIZES = [0, 1, 2, 1472, 8192, 65507]


def test_input_is_echoed_until_a_half_close(served: Superd) -> None:
    assert exchange(served.connect("echo"), b"hello\0\xff\r\n") == b"hello\0\xff\r\n"
    assert exchange(served.connect("echo"), b"") == b""


def test_single_bytes_are_echoed_without_delay(served: Superd) -> None:
    with served.connect("echo") as client:
        for byte in b"abc":
            client.send(bytes([byte]))
            assert client.recv(10) == bytes([byte])


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("times", [1, 3])
def test_megabytes_in_odd_segments_are_echoed_unchanged(
    served: Superd, transport: str, times: int
) -> None:
    tcp = transport == "tcp"
    client = served.connect("echo") if tcp else connect_unix(served.directory / "stream")
    with client:
        sent, received = exchange_digests(client, BULK * times, seed=times)
    assert received == sent


def test_a_client_that_reads_after_its_half_close_gets_everything(served: Superd) -> None:
    data = BULK[: 1 << 20]
    with served.connect("echo") as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert receive_to_end(client) == (data, "fin")


def test_urgent_data_loses_nothing(served: Superd) -> None:
    with served.connect("echo") as client:
        client.send(b"before")
        client.send(b"!", socket.MSG_OOB)
        client.send(b"after")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client).replace(b"!", b"") == b"beforeafter"


@pytest.mark.parametrize("size", SIZES)
def test_a_datagram_is_echoed_unchanged(served: Superd, size: int) -> None:
    assert ask_udp(served.address("echo", "udp"), BULK[:size]) == BULK[:size]


@pytest.mark.parametrize("size", SIZES)
def test_a_unix_datagram_is_echoed_unchanged(served: Superd, size: int) -> None:
    assert ask_unixgram(served.directory / "datagram", BULK[:size]) == BULK[:size]


def test_packets_keep_their_boundaries(served: Superd) -> None:
    packets = [b"a", b"bc", BULK[:65536], b"d"]
    assert ask_unixpacket(served.directory / "packet", *packets) == packets
