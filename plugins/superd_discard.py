"""discard: reads and drops everything (RFC 863).

Options: none.
Example: plugin = "discard", listen = ["tcp://*:9", "udp://*:9"]
See also: echo
"""

from __future__ import annotations

import asyncio

from superd.plugin import Connection, Request, Service, hookimpl


class Discard(Service):
    """Reads and drops all input; never answers, and closes at the end of input."""

    name = "discard"

    def protocol(self, conn: Connection) -> asyncio.Protocol:
        return asyncio.Protocol()

    def datagram(self, request: Request) -> None:
        return None


@hookimpl
def superd_services() -> list[type[Service]]:
    return [Discard]
