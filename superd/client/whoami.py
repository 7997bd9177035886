"""`superd whoami`: the names and addresses of this machine, and the one that a peer would see.

Runs in the command line. Sends nothing, except that it connects to a given tcp or unix address.
Raises UsageError, SuperdError.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from superd.client.interfaces import interfaces
from superd.client.reaching import Deadline, bounded, connect, datagram_sockets, duration, parse
from superd.errors import ExitCode
from superd.net.addresses import Address, Transport

DEFAULT_TIMEOUT = 2.0  # seconds for the name lookup, and for a connection
DEFAULT_PORT = 9  # discard; any port will do to find the route to a host


def whoami(address: str | None, *, as_json: bool, timeout: str | None) -> int:
    """Print the names and addresses of this machine, and the one that a peer would see."""
    seconds = duration("--timeout", timeout, DEFAULT_TIMEOUT)
    found: dict[str, Any] = {}
    if address is not None:
        found["seen"] = _seen(address, Deadline(seconds))
    host = socket.gethostname()
    found = {
        "host": host,
        "name": _full_name(host, Deadline(seconds)),
        "interfaces": interfaces(),
        **found,
    }
    if as_json:
        print(json.dumps(found, indent=2))
        return int(ExitCode.OK)
    name = found["name"]
    rows = [("host", host + (f" ({name})" if name not in ("", host) else ""))]
    rows += [(one, ", ".join(of_it)) for one, of_it in found["interfaces"].items()]
    width = max(len(title) for title, _ in rows)
    for title, text in rows:
        print(f"{title:<{width}}  {text}")
    if "seen" in found:
        print(f"{address} sees {found['seen']['as']}, unless it is translated on the way")
    return int(ExitCode.OK)


def _full_name(host: str, deadline: Deadline) -> str:
    """Return the name with its domain, as `hostname --fqdn` does; "" if it has none."""
    try:
        entries = bounded(
            lambda: socket.getaddrinfo(host, None, flags=socket.AI_CANONNAME), deadline
        )
    except (OSError, UnicodeError):
        return ""
    return next((entry[3] for entry in entries if entry[3]), "")


def _seen(text: str, deadline: Deadline) -> dict[str, Any]:
    """Return the own address that a peer sees: from the kernel's route, or by connecting."""
    target = parse(text, port=DEFAULT_PORT)
    transport = target.transport or Transport.UDP
    if transport is Transport.TCP or (transport.is_unix and not transport.is_datagram):
        client, _ = connect(target, deadline)
    else:
        client, _ = next(datagram_sockets(target, deadline))
    with client:
        own = Address.from_sockaddr(transport, client.getsockname())
    seen: dict[str, Any] = {"by": text, "as": own.endpoint}
    if not transport.is_unix:
        seen |= {"address": own.host, "port": own.port}
    return seen
