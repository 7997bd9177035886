"""echo: sends all input back (RFC 862).

Options: none.
Example: plugin = "echo", listen = ["tcp://*:7", "udp://*:7"]
See also: discard, chargen
"""

from __future__ import annotations

import asyncio

from superd.plugin import BlockingConnection, Connection, Request, Service, hookimpl


class Echo(Service):
    """Sends all input back, and closes at the end of input."""

    name = "echo"

    def protocol(self, conn: Connection) -> asyncio.Protocol:
        return EchoProtocol()

    def stream(self, conn: BlockingConnection) -> None:
        """Serve one client at a time, with `model = "thread"`, "fork" or "prefork"."""
        while data := conn.read():
            conn.send(data)

    def datagram(self, request: Request) -> bytes:
        return request.data


class EchoProtocol(asyncio.Protocol):
    """Stops reading while the client does not read, so that memory per connection is bounded."""

    __slots__ = ("transport",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


@hookimpl
def superd_services() -> list[type[Service]]:
    return [Echo]
