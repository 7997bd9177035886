"""The service: accepts clients, captures their first bytes, records them and bans offenders.

Runs in a worker, on the loop. Never answers a datagram.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from pydantic import ConfigDict, Field

from superd.plugin import (
    Connection,
    Duration,
    Entry,
    FilePath,
    Networks,
    Options,
    PositiveDuration,
    Request,
    Service,
    Size,
    Transport,
    WrongOption,
)
from superd_sniffer import pcap
from superd_sniffer.history import HistoryFile, Knock
from superd_sniffer.offenders import Offenders
from superd_sniffer.ports import port_names
from superd_sniffer.recognisers.guess import guess
from superd_sniffer.rotating import RotatingFile, check_writable

MAX_CAPTURE_BYTES = 64 * 1024
MIN_FILE_BYTES = 256 * 1024  # more than any piece


class Capture(Options):
    bytes: Annotated[
        Size, Field(gt=0, le=MAX_CAPTURE_BYTES, description="limit of captured bytes")
    ] = 4096
    time: Annotated[PositiveDuration, Field(description="limit of time for a capture")] = 5.0


class Ban(Options):
    """Counts tcp only: a forged source of datagrams would get another host banned."""

    model_config = ConfigDict(alias_generator=lambda name: name.rstrip("_").replace("_", "-"))

    after: Annotated[int, Field(ge=1, le=1000, description="knocks until a source is banned")] = 3
    within: Annotated[PositiveDuration, Field(description="period in which they count")] = 60.0
    for_: Annotated[PositiveDuration, Field(description="duration of the ban")] = 3600.0
    never: Annotated[Networks, Field(description="addresses and networks never banned")] = ()


class SnifferOptions(Options):
    capture: Annotated[
        Capture | None, Field(description="capture a client's first bytes; {} for the defaults")
    ] = None
    banner: Annotated[str, Field(max_length=4096, description="text sent to a client first")] = ""
    tarpit: Annotated[Duration, Field(description="delay before the close; 0 for none")] = 0.0
    names: Annotated[bool, Field(description="look up clients' host names")] = False
    output: Annotated[
        FilePath | None, Field(description="file with a line of JSON for each knock")
    ] = None
    pcap: Annotated[FilePath | None, Field(description="capture file, for Wireshark")] = None
    file_size: Annotated[
        Size, Field(ge=MIN_FILE_BYTES, description="size at which a file is rotated")
    ] = 10 << 20
    files: Annotated[
        int, Field(ge=1, le=100, description="number of files of each kind, including older ones")
    ] = 5
    ban: Annotated[
        Ban | None, Field(description="ban sources of repeated knocks by tcp from all services")
    ] = None


class Sniffer(Service):
    """Records each connection and datagram: `Connection from PEER to ADDRESS:SERVICE`.

    With `capture` the record has the first bytes and their protocol; for TLS also the requested
    server name and the JA4 fingerprint. Datagrams are never answered. Ranges of ports, such as
    tcp://*:1-1024, leave out the ports of other services and processes.
    """

    name = "sniffer"
    options_model = SnifferOptions
    options: SnifferOptions

    def check(self, entry: Entry) -> None:
        self.looks_up = self.options.names
        if self.options.output and self.options.output == self.options.pcap:
            raise WrongOption("pcap", "expected another file than output")

    def prepare(self) -> None:
        options = self.options
        self.port_names = port_names()
        self.files = [
            RotatingFile(path, options.file_size, options.files, head)
            for path, head in ((options.output, b""), (options.pcap, pcap.header()))
            if path is not None
        ]

    def preflight(self) -> None:
        for path in (self.options.output, self.options.pcap):
            if path is not None:
                check_writable(path, self.options.files)

    def start(self) -> None:
        self.loop = loop = asyncio.get_running_loop()
        files = iter([HistoryFile(loop, file, self.log) for file in self.files])
        self.output = next(files) if self.options.output else None
        self.packets = next(files) if self.options.pcap else None
        self.offenders = None
        if (ban := self.options.ban) is not None:
            self.offenders = Offenders(ban.after, ban.within, ban.never)

    def protocol(self, conn: Connection) -> asyncio.Protocol:
        return SnifferProtocol(self, conn)

    def datagram(self, request: Request) -> None:
        limit = self.options.capture.bytes if self.options.capture else 0
        data = request.data[:limit]
        self.knocked(Knock(request, time.time(), request.peer, request.local, data))

    def knocked(self, knock: Knock) -> None:
        """Record a knock, and ban its source if it is an offender."""
        if knock.data:
            is_datagram = knock.local.transport.is_datagram
            knock.guess = guess(knock.data, datagram=is_datagram)
        if self.offenders is not None and knock.peer.transport is Transport.TCP:
            ban = self.options.ban
            assert ban is not None
            if self.offenders.count(knock.peer.host, time.monotonic()):
                self.ban(knock.peer, ban.for_, f"{ban.after} knocks")
        if self.options.names:
            self.name_of(knock.peer, lambda name: self._record(knock, name))
        else:
            self._record(knock)

    def _record(self, knock: Knock, name: str = "") -> None:
        knock.name = name
        local = knock.local
        port_name = self.port_names.get((local.transport.value, local.port), "")
        self.record(knock.of, knock.text(port_name), knock.facts())
        if self.output is not None:
            self.output.add(knock.line(self.entry_name, port_name))
        if self.packets is not None and (packets := knock.packets()):
            self.packets.add(packets)

    def close(self) -> None:
        for history in (self.output, self.packets):
            if history is not None:
                history.flush()
        for file in self.files:
            file.close()


class SnifferProtocol(asyncio.Protocol):
    """One connection. It is recorded once, when the capture is full or the client ends."""

    def __init__(self, sniffer: Sniffer, conn: Connection) -> None:
        self.sniffer = sniffer
        self.conn = conn
        self.data = bytearray()
        self.timer: asyncio.TimerHandle | None = None
        self.is_recorded = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        options = self.sniffer.options
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.at = time.time()
        self.peer, self.local = self.conn.peer, self.conn.local
        if options.banner:
            transport.write(options.banner.encode())
        # not in this call: uvloop starts reading after it, and would ignore pause_reading()
        seconds = options.capture.time if options.capture else 0.0
        self.timer = self.sniffer.loop.call_later(seconds, self._end_capture)

    def data_received(self, data: bytes) -> None:
        capture = self.sniffer.options.capture
        if capture is not None and not self.is_recorded:
            self.data += data[: capture.bytes - len(self.data)]
            if len(self.data) >= capture.bytes:
                self._end_capture()

    def eof_received(self) -> None:
        self._record()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self._record()

    def _end_capture(self) -> None:
        """Record the connection, and close it, perhaps after the delay of a tarpit."""
        self._record()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if tarpit := self.sniffer.options.tarpit:
            self.transport.pause_reading()
            self.timer = self.sniffer.loop.call_later(tarpit, self.transport.close)
        else:
            self.transport.close()

    def _record(self) -> None:
        if not self.is_recorded:
            self.is_recorded = True
            data = bytes(self.data)
            self.sniffer.knocked(Knock(self.conn, self.at, self.peer, self.local, data))
