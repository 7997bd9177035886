"""The service: takes whoever knocks, listens for a moment, and tells of it."""

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
from superd_sniffer.history import Knock, Notebook
from superd_sniffer.offenders import Culprits
from superd_sniffer.ports import port_names
from superd_sniffer.recognisers.guess import guess
from superd_sniffer.rotating import RotatingFile, check_writable

MOST_HEARD = 64 * 1024
LEAST_SIZE = 256 * 1024  # of a file: more than any piece


class Capture(Options):
    bytes: Annotated[Size, Field(gt=0, le=MOST_HEARD, description="how much is listened to")] = 4096
    time: Annotated[PositiveDuration, Field(description="for how long")] = 5.0


class Ban(Options):
    """Only knocks by tcp are counted: a datagram's source may be forged, to have others banned."""

    model_config = ConfigDict(alias_generator=lambda name: name.rstrip("_").replace("_", "-"))

    after: Annotated[int, Field(ge=1, le=1000, description="knocks until a source is banned")] = 3
    within: Annotated[PositiveDuration, Field(description="if they come in this time")] = 60.0
    for_: Annotated[PositiveDuration, Field(description="how long it is banned")] = 3600.0
    never: Annotated[Networks, Field(description="addresses and networks that never are")] = ()


class SnifferOptions(Options):
    capture: Annotated[
        Capture | None, Field(description="listen to what a client says first; {} for a moment")
    ] = None
    banner: Annotated[
        str, Field(max_length=4096, description="text that a client is greeted with")
    ] = ""
    tarpit: Annotated[
        Duration, Field(description="how long a client is kept after that; 0 for not at all")
    ] = 0.0
    names: Annotated[bool, Field(description="look up clients' names")] = False
    output: Annotated[
        FilePath | None, Field(description="file with a line of JSON for each knock")
    ] = None
    pcap: Annotated[
        FilePath | None, Field(description="file with what was heard, for Wireshark")
    ] = None
    file_size: Annotated[
        Size, Field(ge=LEAST_SIZE, description="of these files, before they are rotated")
    ] = 10 << 20
    files: Annotated[int, Field(ge=1, le=100, description="of each, with the older ones")] = 5
    ban: Annotated[
        Ban | None, Field(description="have all services refuse who knocks too often by tcp")
    ] = None


class Sniffer(Service):
    """Records who knocks on which port: `Connection from PEER to ADDRESS:SERVICE`.

    With `capture` it listens a while, and says which protocol that was: of TLS also the name that
    was asked for and its JA4 fingerprint. It never answers a datagram. Ranges of ports, such as
    tcp://*:1-1024, leave out what other services and processes have.
    """

    name = "sniffer"
    options_model = SnifferOptions
    options: SnifferOptions

    def check(self, entry: Entry) -> None:
        self.looks_up = self.options.names
        if self.options.output and self.options.output == self.options.pcap:
            raise WrongOption("pcap", "lines of JSON and packets take a file each")

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
        notebooks = iter([Notebook(loop, file, self.log) for file in self.files])
        self.output = next(notebooks) if self.options.output else None
        self.packets = next(notebooks) if self.options.pcap else None
        self.culprits = None
        if (ban := self.options.ban) is not None:
            self.culprits = Culprits(ban.after, ban.within, ban.never)

    def protocol(self, conn: Connection) -> asyncio.Protocol:
        return Listening(self, conn)

    def datagram(self, request: Request) -> None:
        most = self.options.capture.bytes if self.options.capture else 0
        self.heard(Knock(request, time.time(), request.peer, request.local, request.data[:most]))

    def heard(self, knock: Knock) -> None:
        """Go on with what a client has said: tell of it, and perhaps ban who it was."""
        if knock.heard:
            is_datagram = knock.local.transport.is_datagram
            knock.guess = guess(knock.heard, datagram=is_datagram)
        if self.culprits is not None and knock.peer.transport is Transport.TCP:
            ban = self.options.ban
            assert ban is not None
            if self.culprits.is_due(knock.peer.host, time.monotonic()):
                self.ban(knock.peer, ban.for_, f"{ban.after} knocks")
        if self.options.names:
            self.name_of(knock.peer, lambda name: self._tell(knock, name))
        else:
            self._tell(knock)

    def _tell(self, knock: Knock, name: str = "") -> None:
        knock.name = name
        local = knock.local
        port_name = self.port_names.get((local.transport.value, local.port), "")
        self.record(knock.of, knock.text(port_name), knock.facts())
        if self.output is not None:
            self.output.add(knock.line(self.entry_name, port_name))
        if self.packets is not None and (packets := knock.packets()):
            self.packets.add(packets)

    def close(self) -> None:
        for notebook in (self.output, self.packets):
            if notebook is not None:
                notebook.flush()
        for file in self.files:
            file.close()


class Listening(asyncio.Protocol):
    """One connection. It is told of once, when enough was heard, or no more comes."""

    def __init__(self, sniffer: Sniffer, conn: Connection) -> None:
        self.sniffer = sniffer
        self.conn = conn
        self.data = bytearray()
        self.timer: asyncio.TimerHandle | None = None
        self.is_told = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        options = self.sniffer.options
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.at = time.time()
        self.peer, self.local = self.conn.peer, self.conn.local
        if options.banner:
            transport.write(options.banner.encode())
        # not from in here: uvloop begins to read only after this, and could not be told to pause
        seconds = options.capture.time if options.capture else 0.0
        self.timer = self.sniffer.loop.call_later(seconds, self._enough)

    def data_received(self, data: bytes) -> None:
        capture = self.sniffer.options.capture
        if capture is not None and not self.is_told:
            self.data += data[: capture.bytes - len(self.data)]
            if len(self.data) >= capture.bytes:
                self._enough()

    def eof_received(self) -> None:
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self._tell()

    def _enough(self) -> None:
        """Listen no more; keep the client for a while, or let it go."""
        self._tell()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if tarpit := self.sniffer.options.tarpit:
            self.transport.pause_reading()
            self.timer = self.sniffer.loop.call_later(tarpit, self.transport.close)
        else:
            self.transport.close()

    def _tell(self) -> None:
        if not self.is_told:
            self.is_told = True
            heard = bytes(self.data)
            self.sniffer.heard(Knock(self.conn, self.at, self.peer, self.local, heard))
