"""Everything that a plugin imports from superd; nothing of the server.

from superd.plugin import Connection, Service, hookimpl

class Shout(Service):
    name = "shout"

    async def stream(self, conn: Connection) -> None:
        async for line in conn:
            await conn.send(line.upper())

@hookimpl
def superd_services() -> list[type[Service]]:
    return [Shout]

By use:
  plugins    Service, hookimpl; Entry, the TOML entry that `check` gets; Level of a log line
  options    Options, WrongOption; did_you_mean and shown for its text; types of fields: Duration,
             PositiveDuration, Size, Rate, Strings, FilePath, ReadableFile, Networks
  serving    Connection, BlockingConnection, Client, Request, Waiting; LineTooLong, Unavailable
  relaying   Relay, DatagramRelay, Relayed, RelayedDatagrams, Poller, Polled, End; reset_on_close,
             undelivered
  addresses  Address, Transport, IPNetwork, ANY_IPV4, ANY_IPV6; Destination, parse_destination,
             parse_own_host; Candidates, the order and pace of RFC 8305
  PROXY      proxy_header_v1 and proxy_header_v2 of a client, OWN_HEADER_V1 and OWN_HEADER_V2 of
             superd itself
  programs   inherited_environment, variables that superd was started with
"""

from superd.config.lists import Networks
from superd.config.model import Service as Entry
from superd.config.values import (
    Duration,
    FilePath,
    PositiveDuration,
    Rate,
    ReadableFile,
    Size,
    Strings,
    did_you_mean,
)
from superd.errors import shown
from superd.net.addresses import ANY_IPV4, ANY_IPV6, Address, Transport, parse_own_host
from superd.net.closing import reset_on_close, undelivered
from superd.net.destinations import Destination, parse_destination
from superd.net.happy_eyeballs import Candidates
from superd.net.patterns import IPNetwork
from superd.net.proxy import (
    OWN_HEADER_V1,
    OWN_HEADER_V2,
    proxy_header_v1,
    proxy_header_v2,
)
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
    "ANY_IPV4",
    "ANY_IPV6",
    "BlockingConnection",
    "Candidates",
    "Client",
    "Connection",
    "DatagramRelay",
    "Destination",
    "Duration",
    "End",
    "Entry",
    "FilePath",
    "IPNetwork",
    "Level",
    "LineTooLong",
    "Networks",
    "Options",
    "OWN_HEADER_V1",
    "OWN_HEADER_V2",
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
    "did_you_mean",
    "hookimpl",
    "inherited_environment",
    "parse_destination",
    "parse_own_host",
    "proxy_header_v1",
    "proxy_header_v2",
    "reset_on_close",
    "shown",
    "undelivered",
]
