"""What is told of a knock: the record, a line of JSON and the packets of a capture file.

Texts of a client are data everywhere: JSON escapes them, and superd escapes them in its records.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import dataclass

from superd.plugin import Address, Client, Level, Request, Transport
from superd_sniffer import pcap
from superd_sniffer.recognisers.guess import Guess
from superd_sniffer.rotating import RotatingFile

LINGER = 0.05  # seconds that a line may wait for others
MOST_WAITING = 256 * 1024  # bytes that wait for that long
SHOWN = 256  # bytes of what was captured that the record shows


@dataclass
class Knock:
    """Somebody at a port: `of` is the connection or the datagram, `heard` what it said first."""

    of: Client | Request
    at: float  # seconds since the epoch
    peer: Address
    local: Address
    heard: bytes
    guess: Guess | None = None
    name: str = ""

    def text(self, port_name: str) -> str:
        """Return the classic line: `Connection from PEER to ADDRESS:SERVICE`."""
        who = f"{self.peer.endpoint} ({self.name})" if self.name else self.peer.endpoint
        if self.local.transport.is_unix:
            return f"Connection from {who} to {self.local.endpoint}"
        host = f"[{self.local.host}]" if ":" in self.local.host else self.local.host
        what = "Datagram" if self.local.transport.is_datagram else "Connection"
        return f"{what} from {who} to {host}:{port_name or self.local.port}"

    def facts(self) -> dict[str, str]:
        """Return what the record has beside the text."""
        facts = {}
        if self.guess is not None:
            facts = {"protocol": self.guess.protocol, **self.guess.details}
        if self.heard:
            facts |= {"bytes": str(len(self.heard)), "heard": self.heard[:SHOWN].decode("latin-1")}
        return facts

    def line(self, service: str, port_name: str) -> bytes:
        """Return a line of JSON, with all that was heard."""
        told = {
            "time": round(self.at, 6),
            "service": service,
            "transport": self.local.transport.value,
            "peer": self.peer.endpoint,
            "name": self.name,
            "local": self.local.endpoint,
            "port": self.local.port,
            "port-name": port_name,
            "protocol": self.guess.protocol if self.guess else "",
            "details": self.guess.details if self.guess else {},
            "bytes": len(self.heard),
            "text": self.heard.decode("latin-1"),
            "base64": base64.b64encode(self.heard).decode("ascii"),
        }
        return json.dumps(told).encode("ascii") + b"\n"

    def packets(self) -> bytes:
        """Return what a capture file has of it; nothing of a unix socket."""
        if self.peer.transport.is_unix:
            return b""
        peer, local = ((a.host.partition("%")[0], a.port) for a in (self.peer, self.local))
        is_datagram = self.local.transport is Transport.UDP
        make = pcap.packet_of_datagram if is_datagram else pcap.packets_of_stream
        return make(peer, local, self.heard, at=int(self.at * 1e9))


class Notebook:
    """A file that pieces are added to, soon; told once that it takes no more, and when it does."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, file: RotatingFile, log: Callable[[Level, str], None]
    ) -> None:
        self._loop = loop
        self._file = file
        self._log = log
        self._waiting: list[bytes] = []
        self._size = 0
        self._told = 0

    def add(self, piece: bytes) -> None:
        """Take a piece; it is written with others."""
        if not self._waiting:
            self._loop.call_later(LINGER, self.flush)
        self._waiting.append(piece)
        self._size += len(piece)
        if self._size > MOST_WAITING:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        waiting, self._waiting, self._size = self._waiting, [], 0
        if not waiting:
            return
        before = self._file.lost
        self._file.write(waiting)
        lost = self._file.lost
        if lost > before and self._told == before:
            self._log("error", "a file takes no more of what is heard; it is counted what is lost")
        elif lost == before and self._told < lost:
            self._log("warning", f"a file takes again what is heard; {lost - self._told} were lost")
            self._told = lost
