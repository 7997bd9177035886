"""Clients over each transport: polite, silent, resetting, many at once, sending odd segments.

Runs in the test's process. Every socket has a timeout, so a test never waits forever.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.support.harness import EVENT_TIMEOUT, Address, receive_all

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
MAX_SEGMENT_BYTES = 64 * 1024


def connect_tcp(address: Address) -> socket.socket:
    return socket.create_connection(address, timeout=EVENT_TIMEOUT)


def connect_unix(path: str | Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Connect to a unix socket. A datagram client is bound to a name, so it can be answered."""
    client = socket.socket(socket.AF_UNIX, kind)
    client.settimeout(EVENT_TIMEOUT)
    try:
        if kind == socket.SOCK_DGRAM:
            client.bind("")  # the kernel picks an abstract name
        client.connect(str(path))
    except OSError:
        client.close()
        raise
    return client


def ask_unixgram(path: str | Path, data: bytes) -> bytes:
    """Send one datagram to a unix socket and return the answer."""
    with connect_unix(path, socket.SOCK_DGRAM) as client:
        client.send(data)
        return client.recv(1 << 18)


def ask_unixpacket(path: str | Path, *packets: bytes) -> list[bytes]:
    """Send packets, half-close, and return the packets that come back until the end."""
    with connect_unix(path, socket.SOCK_SEQPACKET) as client:
        for packet in packets:
            client.send(packet)
        client.shutdown(socket.SHUT_WR)
        return list(iter(lambda: client.recv(1 << 18), b""))


def receive_and_close(client: socket.socket) -> bytes:
    """Send nothing, read to the end, and close."""
    with client:
        return receive_all(client)


def receive_to_end(client: socket.socket) -> tuple[bytes, str]:
    """Read to the end; return the data and how the stream ended: "fin" or "reset"."""
    parts = []
    try:
        while part := client.recv(MAX_SEGMENT_BYTES):
            parts.append(part)
    except ConnectionResetError:
        return b"".join(parts), "reset"
    return b"".join(parts), "fin"


def connect_and_receive(address: Address, data: bytes = b"") -> tuple[bytes, str]:
    """Connect, send and read to the end; return the data and how it ended: "fin" or "reset"."""
    try:
        with connect_tcp(address) as client:
            client.sendall(data)
            return receive_to_end(client)
    except (ConnectionResetError, BrokenPipeError):
        return b"", "reset"


def reset(client: socket.socket) -> None:
    """Close with a RST instead of a FIN, as a crashing client or a scanner does."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    client.close()


def is_open(client: socket.socket) -> bool:
    """Return whether the peer still keeps the connection open. Consumes no data."""
    client.setblocking(False)
    try:
        return client.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    finally:
        client.settimeout(EVENT_TIMEOUT)


@contextlib.contextmanager
def connect_many(address: Address, number: int) -> Iterator[list[socket.socket]]:
    """Connect many clients at once; close them at the end of the block."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect_tcp(address)) for _ in range(number)]


def segments(data: bytes, seed: int) -> Iterator[memoryview]:
    """Cut data into random pieces, from a single byte to 64 KiB."""
    rng = random.Random(seed)
    view, start = memoryview(data), 0
    while start < len(data):
        size = rng.choice((1, 2, 100, 1460, rng.randint(1, MAX_SEGMENT_BYTES)))
        yield view[start : start + size]
        start += size


def exchange_digests(client: socket.socket, data: bytes, seed: int) -> tuple[str, str]:
    """Send `data` in random pieces while reading in random pieces; return the digests of both."""

    def send() -> None:
        for piece in segments(data, seed):
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)

    rng = random.Random(seed + 1)
    received = hashlib.sha256()
    sender = threading.Thread(target=send)
    sender.start()
    try:
        while part := client.recv(rng.randint(1, MAX_SEGMENT_BYTES)):
            received.update(part)
    finally:
        sender.join(EVENT_TIMEOUT)
    return hashlib.sha256(data).hexdigest(), received.hexdigest()


def send_until_blocked(client: socket.socket, most: int) -> int:
    """Send without reading until the send buffer is full, or `most` bytes are sent."""
    client.setblocking(False)
    piece, sent = bytes(MAX_SEGMENT_BYTES), 0
    with contextlib.suppress(BlockingIOError):
        while sent < most:
            sent += client.send(piece)
    return sent
