"""The names of hosts: which texts may be one, and which is the confirmed one of an address.

Looks up where that may take long, in the resolver and the command line, never in the master or on a
worker's loop. Whoever answers a reverse look-up may say what he likes, so a name that does not
lead back to the address, or has other characters than a host's name, is none. Never raises.
"""

from __future__ import annotations

import re
import socket

from superd.net.addresses import unmapped
from superd.net.patterns import MAX_NAME_CHARACTERS

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


def normalized_name(text: str) -> str:
    """Return a name as DNS has it, in lower case and ASCII; "" for what cannot be a host's.

    What ends in a number is none: the C library takes `127.1` and `0x7f000001` for addresses.
    """
    if len(text) > MAX_NAME_CHARACTERS + 1:  # before the codec, which takes long for a long one
        return ""
    try:
        name = text.lower() if text.isascii() else text.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return ""
    bare = name.removesuffix(".")
    if len(bare) > MAX_NAME_CHARACTERS or not _NAME.fullmatch(bare) or _NUMBER.fullmatch(bare):
        return ""
    return name


def confirmed_name(host: str) -> str:
    """Return the name of a numeric host; "" where it has none that is confirmed."""
    try:
        name = socket.getnameinfo((host, 0), socket.NI_NAMEREQD)[0].lower().removesuffix(".")
        if len(name) > MAX_NAME_CHARACTERS or not _NAME.fullmatch(name):
            return ""
        found = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
    except (OSError, ValueError, UnicodeError):
        return ""
    return name if host in {unmapped(str(entry[4][0])) for entry in found} else ""
