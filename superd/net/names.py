"""The name of a host, confirmed: what a reverse look-up says, if a forward look-up agrees.

Runs where looking up may take long: in the resolver and the command line, never in the master or on
a worker's loop. Whoever answers a reverse look-up may say what he likes, so a name that does not
lead back to the address, or has other characters than a host's name, is none. Never raises.
"""

from __future__ import annotations

import re
import socket

from superd.net.addresses import unmapped
from superd.net.patterns import LONGEST_NAME

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}")


def confirmed_name(host: str) -> str:
    """Return the name of a numeric host; "" where it has none that is confirmed."""
    try:
        name = socket.getnameinfo((host, 0), socket.NI_NAMEREQD)[0].lower().removesuffix(".")
        if len(name) > LONGEST_NAME or not _NAME.fullmatch(name):
            return ""
        found = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
    except (OSError, ValueError, UnicodeError):
        return ""
    return name if host in {unmapped(str(entry[4][0])) for entry in found} else ""
