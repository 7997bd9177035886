"""What a plugin author imports, and nothing of the server.

from superd.plugin import Connection, Service, hookimpl

class Shout(Service):
    name = "shout"

    async def stream(self, conn: Connection) -> None:
        async for line in conn:
            await conn.send(line.upper())

@hookimpl
def superd_services() -> list[type[Service]]:
    return [Shout]
"""

from superd.config.values import (
    Duration,
    FilePath,
    PositiveDuration,
    Rate,
    ReadableFile,
    Size,
    Strings,
)
from superd.net.addresses import Address, Transport
from superd.observe.connections import End
from superd.observe.records import Level
from superd.plugin.connection import BlockingConnection, Client, Connection, LineTooLong
from superd.plugin.environment import inherited_environment
from superd.plugin.hookspecs import hookimpl
from superd.plugin.relay import (
    DatagramRelay,
    Polled,
    Poller,
    Relay,
    Relayed,
    RelayedDatagrams,
)
from superd.plugin.service import (
    Options,
    Request,
    Service,
    Unavailable,
    Waiting,
    WrongOption,
)

__all__ = [
    "Address",
    "BlockingConnection",
    "Client",
    "Connection",
    "DatagramRelay",
    "Duration",
    "End",
    "FilePath",
    "Level",
    "LineTooLong",
    "Options",
    "Polled",
    "Poller",
    "PositiveDuration",
    "Rate",
    "ReadableFile",
    "Relay",
    "Relayed",
    "RelayedDatagrams",
    "Request",
    "Service",
    "Size",
    "Strings",
    "Transport",
    "Unavailable",
    "Waiting",
    "WrongOption",
    "hookimpl",
    "inherited_environment",
]
