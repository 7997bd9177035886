"""What the tests of the sniffer share: reading what it has told, in its file and in the record.

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
    """Wait for so many lines and return all that there are."""

    def found() -> list[str] | None:
        told = whole_lines(file).splitlines()
        return told if len(told) >= number else None

    return until(found, f"{number} lines in {file}", timeout)


def lines(file: Path, number: int, timeout: float = EVENT_TIMEOUT) -> list[Line]:
    """Wait for so many lines of JSON and return all that there are."""
    return [json.loads(text) for text in texts(file, number, timeout)]


class Knocks:
    """The file `output` of a service, as far as the test has not read it."""

    def __init__(self, superd: Superd, service: str) -> None:
        self.file = superd.directory / f"{service}.out"
        self.read = len(whole_lines(self.file).splitlines())

    def next(self, number: int = 1) -> list[Line]:
        """Wait for the next lines: just so many, and no more."""
        told = lines(self.file, self.read + number)[self.read :]
        self.read += len(told)
        assert len(told) == number
        return told


def send_udp(address: Address, data: bytes, source: str = "127.0.0.1") -> Address:
    """Send a datagram; return who it was from."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((source, 0))
        client.sendto(data, address)
        name = client.getsockname()
    return str(name[0]), int(name[1])


def events(superd: Superd, number: int, kind: str = "noted") -> list[Line]:
    """Wait for so many events in the record."""

    def found() -> list[Line] | None:
        told = superd.records(event=kind)
        return told if len(told) >= number else None

    return until(found, f"{number} events {kind}")


def knock(address: Address, data: bytes = b"", source: str | None = None) -> bytes:
    """Connect, send, and read to the end, be it a reset."""
    origin = (source, 0) if source else None
    with socket.create_connection(address, EVENT_TIMEOUT, origin) as client:
        return talk(client, data)


def talk(client: socket.socket, data: bytes) -> bytes:
    """Send, send no more, and read to the end, be it a reset."""
    heard = b""
    with contextlib.suppress(ConnectionError):
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        while part := client.recv(65536):
            heard += part
    return heard
