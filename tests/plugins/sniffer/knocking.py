"""Helpers of the sniffer's tests: knocking, and reading its file and its records.

Runs in the test's process.
"""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any

from tests.support.harness import EVENT_TIMEOUT, Address, Superd, until, whole_lines

Line = dict[str, Any]


def texts(file: Path, number: int, timeout: float = EVENT_TIMEOUT) -> list[str]:
    """Wait for `number` lines and return all lines of the file."""

    def found() -> list[str] | None:
        read_lines = whole_lines(file).splitlines()
        return read_lines if len(read_lines) >= number else None

    return until(found, f"{number} lines in {file}", timeout)


def lines(file: Path, number: int, timeout: float = EVENT_TIMEOUT) -> list[Line]:
    """Wait for `number` lines of JSON and return all of the file."""
    return [json.loads(text) for text in texts(file, number, timeout)]


class Knocks:
    """The file `output` of a service; keeps the position up to which the test has read it."""

    def __init__(self, superd: Superd, service: str) -> None:
        self.file = superd.directory / f"{service}.out"
        self.read = len(whole_lines(self.file).splitlines())

    def next(self, number: int = 1) -> list[Line]:
        """Wait for the next lines; fail if there are more."""
        read_lines = lines(self.file, self.read + number)[self.read :]
        self.read += len(read_lines)
        assert len(read_lines) == number
        return read_lines


def send_udp(address: Address, data: bytes, source: str = "127.0.0.1") -> Address:
    """Send a datagram; return its source address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((source, 0))
        client.sendto(data, address)
        name = client.getsockname()
    return str(name[0]), int(name[1])


def events(superd: Superd, number: int, kind: str = "noted") -> list[Line]:
    """Wait for `number` events of a kind in the record, and return all of them."""

    def found() -> list[Line] | None:
        records = superd.records(event=kind)
        return records if len(records) >= number else None

    return until(found, f"{number} events {kind}")


def knock(address: Address, data: bytes = b"", source: str | None = None) -> bytes:
    """Connect, send, and read to the end or a reset."""
    origin = (source, 0) if source else None
    with socket.create_connection(address, EVENT_TIMEOUT, origin) as client:
        return talk(client, data)


def talk(client: socket.socket, data: bytes) -> bytes:
    """Send, shut down the output, and read to the end or a reset."""
    received = b""
    with contextlib.suppress(ConnectionError):
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        while part := client.recv(65536):
            received += part
    return received
