"""Host names: which texts are valid, and the confirmed name of an address.

`confirmed_name` blocks, so it runs in the resolver and the command line, never in the master or on
a worker's loop. The owner of an address decides what a reverse lookup returns. A name is therefore
rejected unless it has only the characters of a host name and resolves back to the address. Never
raises.
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
    """Return a host name in the form of DNS, lower case and ASCII; "" if it is not valid.

    A name whose last label is a number is not valid: the C library parses `127.1` and `0x7f000001`
    as addresses.
    """
    if len(text) > MAX_NAME_CHARACTERS + 1:  # the idna codec is slow for long texts
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
    """Return the name of a numeric host that resolves back to it; "" if there is none."""
    try:
        name = socket.getnameinfo((host, 0), socket.NI_NAMEREQD)[0].lower().removesuffix(".")
        if len(name) > MAX_NAME_CHARACTERS or not _NAME.fullmatch(name):
            return ""
        found = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
    except (OSError, ValueError, UnicodeError):
        return ""
    return name if host in {unmapped(str(entry[4][0])) for entry in found} else ""
