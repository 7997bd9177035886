"""Addresses as values: parse, format, compare.

Used by every process. Opens no socket and looks up no host's name: an address keeps it until it is
bound (superd.listen.names). Raises ValueError with a text for the operator.
"""

from __future__ import annotations

import enum
import errno
import ipaddress
import os
import re
import socket
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl

from superd.errors import shown
from superd.net.accounts import Kind, id_of

ANY_IPV4 = "0.0.0.0"  # noqa: S104  the wildcard is what an operator asks for with "*"
ANY_IPV6 = "::"
BROADCAST = "255.255.255.255"
MAX_PORT = 65535
MAX_ADDRESSES = 65536  # of all services together
MAX_UNIX_PATH_BYTES = 107  # sun_path without its NUL (unix(7))
MAX_ID = (1 << 32) - 2  # the next one is -1, "do not change" (chown(2))
LINK_LOCAL_SCOPES = (1, 2)  # of IPv6 multicast: one interface, one link (RFC 4291, 2.7)


class Transport(enum.Enum):
    """The part of an address before `://`."""

    TCP = "tcp"
    UDP = "udp"
    UNIX = "unix"
    UNIXGRAM = "unixgram"
    UNIXPACKET = "unixpacket"
    TCPMUX = "tcpmux"

    def __init__(self, prefix: str) -> None:
        self.is_unix = prefix.startswith("unix")
        self.is_datagram = prefix in ("udp", "unixgram")

    @property
    def client_transport(self) -> Transport:
        """The transport of accepted connections: tcp for tcpmux, else the same."""
        return Transport.TCP if self is Transport.TCPMUX else self

    @property
    def socket_type(self) -> socket.SocketKind:
        if self.is_datagram:
            return socket.SOCK_DGRAM
        return socket.SOCK_SEQPACKET if self is Transport.UNIXPACKET else socket.SOCK_STREAM


@dataclass(frozen=True)
class Address:
    """The address of a listener, or of one end of a connection.

    `host` is numeric, or in a configuration also a name, or "*" for every IPv4 and IPv6 address;
    `listed_host` is the name or "*" that a numeric host was made of. `path` is a file, or "@name"
    in the abstract namespace, or the name of a tcpmux service. `mode`, `uid` and `gid` are for the
    socket's file; None and -1 leave them to the default. `greets` says whether superd, not
    the service, sends `+Go` to tcpmux clients (RFC 1078). An address from a port range yields to a
    service that names it explicitly.
    """

    transport: Transport
    host: str = ""
    port: int = 0
    path: str = ""
    mode: int | None = field(default=None, compare=False)
    uid: int = field(default=-1, compare=False)
    gid: int = field(default=-1, compare=False)
    greets: bool = field(default=True, compare=False)
    is_from_range: bool = field(default=False, compare=False)
    listed_host: str = field(default="", compare=False)

    @property
    def family(self) -> socket.AddressFamily:
        if self.transport.is_unix:
            return socket.AF_UNIX
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def is_wildcard(self) -> bool:
        return self.host in (ANY_IPV4, ANY_IPV6, "*")

    @property
    def is_loopback(self) -> bool:
        return self.host == "::1" or self.host.startswith("127.")

    @property
    def is_name(self) -> bool:
        """Whether the host is a name, which has to be looked up before it can be bound."""
        return self.host not in ("", "*") and ":" not in self.host and not is_ipv4(self.host)

    @property
    def listed(self) -> Address:
        """The address in the configuration that this one was made of; else this one."""
        return self.at(self.listed_host, "") if self.listed_host else self

    def at(self, host: str, listed_host: str) -> Address:
        """Return this address at another host."""
        return replace(self, host=host, listed_host=listed_host)

    @property
    def is_file(self) -> bool:
        return self.path.startswith("/")

    @property
    def sockaddr(self) -> Any:
        """The address in the form that Python's socket module takes. OSError if its network
        interface is missing.
        """
        if self.transport.is_unix:
            return "\0" + self.path[1:] if self.path.startswith("@") else self.path
        if self.family == socket.AF_INET:
            return (self.host, self.port)
        host, _, scope = self.host.partition("%")
        return (host, self.port, 0, _scope_id(scope))

    @property
    def endpoint(self) -> str:
        """The address without its transport: `127.0.0.1:7`, `[::1]:7` or a path."""
        if self.transport.is_unix or self.transport is Transport.TCPMUX:
            return self.path or "(unnamed)"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.transport.value}://{self.endpoint}"

    def expanded(self) -> tuple[Address, ...]:
        """Return one address for each socket: "*" becomes one of IPv4 and one of IPv6."""
        if self.host != "*":
            return (self,)
        return tuple(self.at(host, "*") for host in (ANY_IPV4, ANY_IPV6))

    @classmethod
    def from_sockaddr(cls, transport: Transport, sockaddr: Any) -> Address:
        """Return an address from accept(2), recvmsg(2) or getsockname(2); IPv4-mapped as IPv4."""
        if transport.is_unix:
            raw = sockaddr or b""
            path = raw.decode(errors="backslashreplace") if isinstance(raw, bytes) else raw
            return cls(transport, path="@" + path[1:] if path.startswith("\0") else path)
        host = sockaddr[0]
        return cls(transport, unmapped(host), sockaddr[1])


def _scope_id(scope: str) -> int:
    """Return the number of a network interface, from its name or number; 0 for none."""
    if not scope or scope.isdecimal():
        return int(scope or 0)
    try:
        return socket.if_nametoindex(scope)
    except OSError:  # without an errno before Python 3.14
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), scope) from None


def unmapped(host: str) -> str:
    """Return an IPv4-mapped IPv6 host (RFC 4291, 2.5.5.2) as IPv4; any other host unchanged."""
    return host[7:] if host.startswith("::ffff:") and "." in host else host


def host_of(text: str) -> str:
    """Return the host of an address as superd prints it: HOST, HOST:PORT, [HOST] or [HOST]:PORT,
    without the zone of IPv6. Any other text is returned unchanged.

    >>> host_of("[2001:db8::1]:443"), host_of("192.0.2.1:80"), host_of("2001:db8::/32")
    ('2001:db8::1', '192.0.2.1', '2001:db8::/32')
    """
    if match := re.fullmatch(r"\[([0-9A-Fa-f:.]+)(?:%[^\]]+)?\](?::[0-9]+)?", text):
        return match[1]
    if match := re.fullmatch(r"([0-9.]+):[0-9]+|([0-9A-Fa-f:.]+)%.+", text):
        return match[1] or match[2]
    return text


ENDPOINT = re.compile(
    r"(?:\[(?P<bracketed>[^\]]*)\]|(?P<host>[^:/\[\]]*)):(?P<ports>.+)", re.DOTALL
)


def parse_addresses(text: str) -> tuple[Address, ...]:
    """Return the addresses of a `listen` value: several for a port range. ValueError.

    >>> [str(a) for a in parse_addresses("tcp://127.0.0.1:7-8")]
    ['tcp://127.0.0.1:7', 'tcp://127.0.0.1:8']
    """
    prefix, separator, rest = text.partition("://")
    transport = next((t for t in Transport if t.value == prefix), None)
    if transport is None or not separator:
        known = ", ".join(f"{t.value}://" for t in Transport)
        raise ValueError(f"expected an address that starts with one of {known}")
    if transport.is_unix:
        return (parse_unix(transport, rest),)
    if transport is Transport.TCPMUX:
        return (_parse_tcpmux(rest),)
    match = ENDPOINT.fullmatch(rest)
    if match is None:
        example = f"{prefix}://127.0.0.1:7, {prefix}://[::1]:7 or {prefix}://*:7"
        raise ValueError(f"expected a host and a port, such as {example}")
    host = _parse_host(match["bracketed"], match["host"])
    if transport is Transport.TCP and is_for_many(host):
        raise ValueError(f"no client can connect to {host} by tcp: it is the address of many hosts")
    ports = parse_ports(match["ports"], transport)
    is_range = len(ports) > 1
    return tuple(Address(transport, host, port, is_from_range=is_range) for port in ports)


def _parse_host(bracketed: str | None, plain: str | None) -> str:
    if bracketed is not None:
        return parse_ipv6(bracketed)
    if not plain:
        raise ValueError('the host is missing; "*" means every address')
    if plain == "*" or is_ipv4(plain):
        return plain
    # the C library parses `127.1` and `0x7f000001` as addresses
    if re.fullmatch(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?", plain, re.ASCII | re.IGNORECASE):
        raise ValueError(f"{plain} is not an IPv4 address")
    if not re.fullmatch(r"(?:[\w-]{1,63}\.)*[\w-]{1,63}\.?", plain):
        raise ValueError(f"{shown(plain)} is not a host")
    return plain


def is_ipv4(host: str) -> bool:
    """Return whether a host is an IPv4 address."""
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def parse_ipv6(text: str) -> str:
    """Return the host of an IPv6 address without brackets; an IPv4-mapped one as IPv4. ValueError.

    A link-local address is of one interface, so it has to name that (RFC 4007).
    """
    try:
        host = ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError(f"[{text}] is not an IPv6 address") from None
    is_of_link = host.is_link_local or (
        host.is_multicast and (host.packed[1] & 0xF) in LINK_LOCAL_SCOPES
    )
    if is_of_link and host.scope_id is None:
        raise ValueError(
            f"[{host}] is an address of one link; add its network interface, such as [{host}%eth0]"
        )
    return str(host.ipv4_mapped or host)


def is_for_many(host: str) -> bool:
    """Return whether a numeric host is a multicast address or the broadcast address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_multicast or host == BROADCAST


def parse_own_host(text: str) -> str:
    """Return the numeric host of a local address to connect from. ValueError."""
    try:
        host = str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("expected an IPv4 or IPv6 address without a port") from None
    if ":" in host:
        host = parse_ipv6(host)
    if is_for_many(host):
        raise ValueError(f"cannot connect from {host}: it is the address of many hosts")
    return host


def parse_ports(text: str, transport: Transport) -> range:
    """Return one port, or a range of ports; a name with a hyphen is one port."""
    if not re.fullmatch(r"[0-9]+-[0-9]+", text):
        port = parse_port(text, transport)
        return range(port, port + 1)
    first, last = (parse_port(end, transport) for end in text.split("-"))
    if not 0 < first <= last:
        raise ValueError(f"expected a range of ports from low to high, above 0, not {text}")
    return range(first, last + 1)


def parse_port(text: str, transport: Transport) -> int:
    """Return the port of a number or of a name in /etc/services. ValueError."""
    if re.fullmatch(r"[0-9]+", text):
        digits = text.lstrip("0") or "0"
        if len(digits) > len(str(MAX_PORT)) or int(digits) > MAX_PORT:
            raise ValueError(f"there is no port {text:.20} (the last is {MAX_PORT})")
        return int(digits)
    try:
        return socket.getservbyname(text, transport.value)
    except (OSError, ValueError):
        raise ValueError(f"{shown(text)} is neither a port nor a name of /etc/services") from None


def parse_unix(transport: Transport, rest: str) -> Address:
    """Return the address of a unix socket from the text after `://`. ValueError."""
    path, _, query = rest.partition("?")
    if not path.startswith(("/", "@")) or len(path) == 1:
        raise ValueError(
            f"expected an absolute path ({transport.value}:///run/name.sock)"
            f" or an abstract name ({transport.value}://@name)"
        )
    if len(os.fsencode(path)) > MAX_UNIX_PATH_BYTES:
        raise ValueError(
            f"the path of a unix socket has at most {MAX_UNIX_PATH_BYTES} bytes (unix(7))"
        )
    if "\0" in path:
        raise ValueError("the path of a unix socket cannot contain NUL")
    mode, uid, gid = None, -1, -1
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key == "mode":
            if not re.fullmatch(r"0?[0-7]{3}", value):
                raise ValueError(f"expected an octal mode, such as 0660, not {shown(value)}")
            mode = int(value, 8)
        elif key == "user":
            uid = look_up_id(value, "user")
        elif key == "group":
            gid = look_up_id(value, "group")
        else:
            raise ValueError(f"expected mode, user or group after the ?, not {shown(key)}")
    return Address(transport, path=path, mode=mode, uid=uid, gid=gid)


def _parse_tcpmux(rest: str) -> Address:
    name, _, query = rest.partition("?")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", name) or name.lower() == "help":
        raise ValueError("expected a name of letters, digits and . _ + -, such as tcpmux://finger")
    if query not in ("", "greeting=service"):
        raise ValueError(f"expected greeting=service after the ?, not {shown(query)}")
    return Address(Transport.TCPMUX, path=name.lower(), greets=not query)


def look_up_id(name: str, kind: Kind) -> int:
    """Return the id of a user or a group from a number or a name. ValueError."""
    if re.fullmatch(r"[0-9]{1,10}", name) and int(name) <= MAX_ID:
        return int(name)
    return id_of(name, kind)
