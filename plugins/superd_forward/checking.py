"""Judges targets against the addresses that a service listens on: loops, and ranges of ports.

Runs wherever a configuration is checked. Looks up no name.
"""

from __future__ import annotations

import ipaddress
import socket

from superd.plugin import ANY_IPV4, ANY_IPV6, Address, Destination, Entry


def range_mistake(to: Destination, entry: Entry) -> str:
    """Return why a range of ports cannot be forwarded to; "" if it can, or for one port."""
    for is_datagram in (False, True) if to.last_port else ():
        ports = ports_of(entry, datagrams=is_datagram)
        if ports and to.serves(datagrams=is_datagram) and len(ports) != len(to.ports):
            what = f"{ports[0]}-{ports[-1]}" if len(ports) > 1 else str(ports[0])
            return (
                f"{to} has {len(to.ports)} ports, but listen has {len(ports)} ({what}); a range is"
                " forwarded to one port, or to a range of as many ports"
            )
    return ""


def ports_of(entry: Entry, *, datagrams: bool) -> range:
    """Return the ports that a service listens on, from the lowest to the highest."""
    addresses = [one for one in entry.listen if one.transport.is_datagram == datagrams]
    ports = [one.port for one in addresses if not one.transport.is_unix]
    return range(min(ports), max(ports) + 1) if ports else range(0)


def reaches(to: Destination, listener: Address) -> bool:
    """Return whether a connection to the destination reaches the listener."""
    if not to.serves(datagrams=listener.transport.is_datagram):
        return False
    if to.path or listener.transport.is_unix:
        return to.path == listener.path and bool(to.path)
    if listener.port not in to.ports:
        return False
    return to.host == listener.host or (_covers(listener, to) and _is_own(to.host))


def _covers(listener: Address, to: Destination) -> bool:
    """Return whether it is a wildcard of the destination's family; `[::]` is for IPv6 only."""
    if to.is_name or listener.host == "*":
        return listener.is_wildcard
    return listener.host == (ANY_IPV6 if ":" in to.host else ANY_IPV4)


def _is_own(host: str) -> bool:
    """Return whether a host is certainly this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in ("localhost", socket.gethostname().lower())
