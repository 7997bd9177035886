"""Which ports only a privileged process may bind, and whether this process is one (ip(7)).

Runs in the command line and the master. Never binds. Never raises.
"""

from __future__ import annotations

import os
from pathlib import Path

from superd.net.addresses import Address
from superd.process.capabilities import held

CAP_NET_BIND_SERVICE = 10
UNPRIVILEGED_PORT_START = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
DEFAULT_PORT_START = 1024


def bind_remedy(address: Address) -> str:
    """Return why this process may not bind an address, with the remedy; "" if it may."""
    start = first_unprivileged_port()
    if not 0 < address.port < start or may_bind_all_ports():
        return ""
    ports = "some ports are" if address.is_from_range else f"port {address.port} is"
    return (
        f"{ports} below {start}; use a higher port, or run superd as root or with"
        " CAP_NET_BIND_SERVICE (AmbientCapabilities= in a unit of systemd)"
    )


def first_unprivileged_port() -> int:
    """Return the first port that any user may bind, for IPv4 and IPv6 alike."""
    try:
        return int(UNPRIVILEGED_PORT_START.read_text())
    except (OSError, ValueError):
        return DEFAULT_PORT_START


def may_bind_all_ports() -> bool:
    """Return whether this process may bind privileged ports, as root usually may."""
    try:
        return bool(held().effective >> CAP_NET_BIND_SERVICE & 1)
    except (OSError, AttributeError):  # a kernel without capabilities
        return os.geteuid() == 0
