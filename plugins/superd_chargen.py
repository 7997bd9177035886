"""chargen: sends a pattern of characters without end (RFC 864).

Options: none.
Example: plugin = "chargen", listen = ["tcp://*:19", "udp://*:19"]
See also: echo, discard
"""

from __future__ import annotations

import asyncio
import random

from superd.plugin import Connection, Request, Service, hookimpl

RING = bytes(range(0x20, 0x7F))  # the 95 printing characters
LINE_LENGTH = 72
MAX_DATAGRAM_BYTES = 512


def _pattern() -> bytes:
    """Return the whole pattern: a line starts at each character of the ring in turn."""
    twice = RING * 2
    return b"".join(twice[start : start + LINE_LENGTH] + b"\r\n" for start in range(len(RING)))


PATTERN = _pattern()
CHUNK = PATTERN * 8


class Chargen(Service):
    """Sends the pattern until the client closes; input is discarded.

    A datagram is answered with 0 to 512 characters of the pattern, as in the RFC, and with no more
    bytes than the request had, unless the entry says `amplify = true`.
    """

    name = "chargen"

    def protocol(self, conn: Connection) -> asyncio.Protocol:
        return Generator()

    def datagram(self, request: Request) -> bytes:
        length = random.randint(0, MAX_DATAGRAM_BYTES)  # noqa: S311  nothing secret depends on it
        return PATTERN[: min(length, request.room)]


class Generator(asyncio.Protocol):
    """Writes a chunk each turn of the loop while the client reads."""

    __slots__ = ("is_paused", "loop", "transport")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.loop = asyncio.get_running_loop()
        self.is_paused = False
        self.generate()

    def generate(self) -> None:
        if not self.is_paused and not self.transport.is_closing():
            self.transport.write(CHUNK)
            self.loop.call_soon(self.generate)

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self.generate()

    def eof_received(self) -> bool:
        return True  # a client may shut down its output and still read


@hookimpl
def superd_services() -> list[type[Service]]:
    return [Chargen]
