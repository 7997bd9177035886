"""time: sends the seconds since 1900 as four bytes (RFC 868).

Options: none.
Example: plugin = "time", listen = ["tcp://*:37", "udp://*:37"]
See also: daytime
"""

from __future__ import annotations

import time

from superd.plugin import Request, Service, hookimpl

SECONDS_1900_TO_1970 = 2_208_988_800


class Time(Service):
    """Answers with a 32-bit big-endian number, modulo 2**32: it wraps in February 2036.

    The answer has 4 bytes. Over udp a shorter request gets it only with `amplify = true`.
    """

    name = "time"

    def respond(self, request: Request) -> bytes:
        return on_the_wire(time.time())


def on_the_wire(now: float) -> bytes:
    """Return the answer for a time in seconds since 1970."""
    return ((int(now) + SECONDS_1900_TO_1970) % 2**32).to_bytes(4, "big")


@hookimpl
def superd_services() -> list[type[Service]]:
    return [Time]
