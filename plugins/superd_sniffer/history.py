"""The history of knocks: the record, a line of JSON and the packets of a capture file for each.

Runs in a worker, on the loop. A client's text is data everywhere: JSON escapes it, and superd
escapes it in its records.
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

FLUSH_DELAY = 0.05  # seconds, to write several pieces together
MAX_PENDING_BYTES = 256 * 1024  # then they are written without delay
MAX_RECORDED_BYTES = 256  # of the captured data, in the record


@dataclass
class Knock:
    """A connection to a port, or a datagram: `of`. `data` is what was captured of it."""

    of: Client | Request
    at: float  # seconds since the epoch
    peer: Address
    local: Address
    data: bytes
    guess: Guess | None = None
    name: str = ""

    def text(self, port_name: str) -> str:
        """Return the text of the record: `Connection from PEER to ADDRESS:SERVICE`."""
        client = f"{self.peer.endpoint} ({self.name})" if self.name else self.peer.endpoint
        if self.local.transport.is_unix:
            return f"Connection from {client} to {self.local.endpoint}"
        host = f"[{self.local.host}]" if ":" in self.local.host else self.local.host
        what = "Datagram" if self.local.transport.is_datagram else "Connection"
        return f"{what} from {client} to {host}:{port_name or self.local.port}"

    def facts(self) -> dict[str, str]:
        """Return the facts of the record, by name."""
        facts = {}
        if self.guess is not None:
            facts = {"protocol": self.guess.protocol, **self.guess.details}
        if self.data:
            facts |= {
                "bytes": str(len(self.data)),
                "heard": self.data[:MAX_RECORDED_BYTES].decode("latin-1"),
            }
        return facts

    def line(self, service: str, port_name: str) -> bytes:
        """Return a line of JSON, with all captured data."""
        values = {
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
            "bytes": len(self.data),
            "text": self.data.decode("latin-1"),
            "base64": base64.b64encode(self.data).decode("ascii"),
        }
        return json.dumps(values).encode("ascii") + b"\n"

    def packets(self) -> bytes:
        """Return its packets for a capture file; none for a unix socket."""
        if self.peer.transport.is_unix:
            return b""
        peer, local = ((a.host.partition("%")[0], a.port) for a in (self.peer, self.local))
        is_datagram = self.local.transport is Transport.UDP
        make = pcap.packet_of_datagram if is_datagram else pcap.packets_of_stream
        return make(peer, local, self.data, at=int(self.at * 1e9))


class HistoryFile:
    """Writes pieces to a file, several in one call. Logs the first failed write, and when writing
    works again.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, file: RotatingFile, log: Callable[[Level, str], None]
    ) -> None:
        self._loop = loop
        self._file = file
        self._log = log
        self._pending: list[bytes] = []
        self._size = 0
        self._reported = 0

    def add(self, piece: bytes) -> None:
        """Write a piece soon, together with others."""
        if not self._pending:
            self._loop.call_later(FLUSH_DELAY, self.flush)
        self._pending.append(piece)
        self._size += len(piece)
        if self._size > MAX_PENDING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write all pending pieces."""
        pending, self._pending, self._size = self._pending, [], 0
        if not pending:
            return
        before = self._file.lost
        self._file.write(pending)
        lost = self._file.lost
        if lost > before and self._reported == before:
            self._log("error", f"cannot write {self._file.path}: knocks are lost")
        elif lost == before and self._reported < lost:
            number = lost - self._reported
            self._log("warning", f"writing {self._file.path} again; {number} knocks were lost")
            self._reported = lost
