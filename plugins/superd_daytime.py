"""daytime: sends the date and time as text (RFC 867).

Options: none. The time zone is the machine's.
Example: plugin = "daytime", listen = ["tcp://*:13", "udp://*:13"]
See also: time
"""

from __future__ import annotations

import time
from functools import lru_cache

from superd.plugin import Request, Service, hookimpl


class Daytime(Service):
    """Answers with a line in BSD's format: `Sun Nov 22 05:48:49 2026`.

    The answer has 26 bytes. Over udp a shorter request gets it only with `amplify = true`.
    """

    name = "daytime"

    def respond(self, request: Request) -> bytes:
        return line(int(time.time()))


@lru_cache(maxsize=1)
def line(seconds: int) -> bytes:
    """Return the answer for a time in seconds since 1970; cached, as it changes once a second."""
    return f"{time.ctime(seconds)}\r\n".encode("ascii")


@hookimpl
def superd_services() -> list[type[Service]]:
    return [Daytime]
