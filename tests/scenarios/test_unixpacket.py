"""unixpacket: each write is one packet, however the readers on both sides behave."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.clients import ask_unixpacket, connect_unix
from tests.support.harness import Superd, until

SO_SNDBUFFORCE = 32
MAX_PACKET_BYTES = 1 << 18

TALKER = """
    import asyncio
    from superd.plugin import Service, hookimpl

    class Talker(Service):
        name = "talker"

        async def stream(self, conn):
            word = (await conn.read()).decode()
            if word == "burst":
                for number in range(3000):
                    await conn.send(b"%d" % number * 10)
            elif word == "abort":
                await conn.send(b"now")
                conn.abort()
            elif word == "too long":
                await conn.send(bytes((1 << 18) + 1))
            elif word == "half":
                conn.send_eof()
                while packet := await conn.read():
                    self.seen = packet
            elif word == "seen":
                await conn.send(self.seen)

    @hookimpl
    def superd_services():
        return [Talker]
"""
PLUGINS = {"talker": TALKER}
TOML = """
    [service.echo]
    plugin = "echo"
    listen = "unixpacket://{directory}/echo"

    [service.talker]
    plugin = "talker"
    listen = "unixpacket://{directory}/talker"
"""


@contextlib.contextmanager
def connected(superd: Superd, service: str) -> Iterator[socket.socket]:
    with connect_unix(superd.directory / service, socket.SOCK_SEQPACKET) as client:
        yield client


def ask_talker(superd: Superd, word: str) -> list[bytes]:
    """Send one word to the talker, and return its packets until the end."""
    with connected(superd, "talker") as client:
        client.send(word.encode())
        return list(iter(lambda: client.recv(MAX_PACKET_BYTES), b""))


def random_packets(number: int, largest: int) -> list[bytes]:
    rng = random.Random(number)
    return [rng.randbytes(rng.randint(1, largest)) for _ in range(number)]


def test_packets_keep_their_boundaries_both_ways(served: Superd) -> None:
    packets = random_packets(2000, 3000)
    received = []
    with connected(served, "echo") as client:

        def send() -> None:
            for packet in packets:
                client.send(packet)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        while packet := client.recv(MAX_PACKET_BYTES):
            received.append(packet)
        sender.join()
    assert received == packets


def test_packets_keep_their_boundaries_to_a_client_that_does_not_read_at_first(
    served: Superd,
) -> None:
    packets = random_packets(20_000, 3000)
    sent = 0
    with connected(served, "echo") as client:
        client.setblocking(False)

        def is_stuck() -> bool:
            """Send until superd stops reading because the client does not read its answers."""
            nonlocal sent
            before = sent
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.send(packets[sent])
                    sent += 1
            return before == sent

        until(is_stuck, "backpressure")
        assert 0 < sent < len(packets), "superd accepts any number of packets"
        client.settimeout(10)
        client.shutdown(socket.SHUT_WR)
        assert list(iter(lambda: client.recv(MAX_PACKET_BYTES), b"")) == packets[:sent]


def test_packets_sent_before_the_plugin_returned_arrive(served: Superd) -> None:
    assert ask_talker(served, "burst") == [b"%d" % number * 10 for number in range(3000)]


@pytest.mark.parametrize("size", [1, 65536, 200_000])
def test_a_large_packet_is_echoed_whole(served: Superd, size: int) -> None:
    packet = random.Random(size).randbytes(size)
    assert ask_unixpacket(served.directory / "echo", packet, b"next") == [packet, b"next"]


@pytest.mark.root
def test_the_largest_packet_is_echoed_and_a_larger_one_closes_the_connection(
    served: Superd,
) -> None:
    packet = random.Random(1).randbytes(MAX_PACKET_BYTES)
    with connected(served, "echo") as client:
        client.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 20)
        client.send(packet)
        assert client.recv(1 << 20) == packet
        client.send(packet + b"x")
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1 << 20) == b"", "a part of the packet"
    assert ask_unixpacket(served.directory / "echo", b"hello") == [b"hello"]


def test_each_side_may_finish_first(served: Superd) -> None:
    assert ask_unixpacket(served.directory / "echo", b"one", b"two") == [b"one", b"two"]
    with connected(served, "talker") as client:
        client.send(b"half")
        assert client.recv(100) == b"", "superd has not half-closed"
        client.send(b"still sent")
    until(
        lambda: ask_talker(served, "seen") == [b"still sent"], "the packet that was sent after that"
    )


def test_an_empty_packet_ends_the_connection(served: Superd) -> None:
    with connected(served, "echo") as client:
        client.send(b"hello")
        client.send(b"")
        assert client.recv(100) == b"hello"
        assert client.recv(100) == b""


def test_a_plugin_may_abort(served: Superd) -> None:
    with connected(served, "talker") as client:
        client.send(b"abort")
        assert client.recv(100) == b"now"
        assert client.recv(100) == b""


def test_sending_a_packet_that_is_too_long_is_an_error_of_the_plugin(served: Superd) -> None:
    errors = served.counts("talker")["errors"]
    assert ask_talker(served, "too long") == []
    assert served.counts("talker")["errors"] == errors + 1
    served.wait_for_log("plugin talker failed: ValueError: a packet has at most 262144 bytes")


def test_clients_that_disconnect_suddenly_leave_no_connection_behind(served: Superd) -> None:
    lines = served.log().count("Traceback")
    for turn in range(300):
        with connected(served, "echo") as client:
            for _ in range(turn % 5):
                client.send(b"hello")
    until(lambda: served.counts("echo")["active"] == 0, "the end of all connections")
    assert served.log().count("Traceback") == lines
