"""Tunnels and proxies: SOCKS, the PROXY protocol's header, PPTP. Pure; raises nothing but
`Unreadable`.
"""

from __future__ import annotations

import ipaddress

from superd_sniffer.recognisers.reading import Details, Malformed, Reader, Short, require, text

_COMMANDS = {1: "connect", 2: "bind", 3: "udp-associate"}
_SOCKS5_METHODS = {0: "none", 1: "gssapi", 2: "password", 3: "chap"}
_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def _place(host: str, port: int | str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _number(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))


def socks4(data: bytes) -> Details | None:
    """SOCKS 4, and 4A with a name."""
    reader = Reader(data)
    require(reader.number(1) == 4)
    command = reader.number(1)
    require(command in (1, 2))
    port, host = reader.number(2), reader.take(4)
    user = reader.until(b"\0", 255)
    destination = _number(host)
    if host[:3] == b"\0\0\0" and host[3]:
        destination = text(reader.until(b"\0", 255))
    require(port > 0 or command == 2)
    place = _place(destination, port)
    return {"command": _COMMANDS[command], "destination": place, "user": text(user)}


def socks5(data: bytes) -> Details | None:
    """RFC 1928; with the destination if the client sends it without waiting for an answer."""
    reader = Reader(data)
    require(reader.number(1) == 5)
    methods = reader.vector(1)
    offered = methods.take(methods.left)
    require(0 < len(offered) <= 10 and len(set(offered)) == len(offered))
    require(all(one <= 9 or 0x80 <= one <= 0xFE for one in offered))
    details = {"methods": ",".join(_SOCKS5_METHODS.get(one, str(one)) for one in offered)}
    if not reader.left:
        return details
    try:
        if (version := reader.number(1)) == 1:  # a name and a password (RFC 1929)
            user, password = (reader.vector(1) for _ in range(2))
            details["user"] = text(user.take(user.left))
            password.take(password.left)
            version = reader.number(1)
        require(version == 5)
        return {**details, **_socks5_request(reader)}
    except Short:
        return details


def _socks5_request(reader: Reader) -> Details:
    command, reserved, kind = reader.number(1), reader.number(1), reader.number(1)
    require(command in _COMMANDS and reserved == 0)
    if kind == 3:
        name = reader.vector(1)
        host = text(name.take(name.left))
    else:
        require(kind in (1, 4))
        host = _number(reader.take(4 if kind == 1 else 16))
    place = _place(host, reader.number(2))
    return {"command": _COMMANDS[command], "destination": place}


def proxy(data: bytes) -> Details | None:
    """HAProxy's doc/proxy-protocol.txt, both versions."""
    if data.startswith(_V2_SIGNATURE):
        return {"version": "2", **_proxy_v2(data[len(_V2_SIGNATURE) :])}
    words = data[:108].partition(b"\r\n")[0].split(b" ")
    if words[0] != b"PROXY" or len(words) < 2:
        return None
    if words[1].rstrip(b"\r") == b"UNKNOWN":
        return {"version": "1"}
    if words[1] not in (b"TCP4", b"TCP6"):
        return None
    if len(words) != 6 or b"\r\n" not in data[:108]:
        return {"version": "1"}
    source, destination = (
        _place(text(host), text(port)) for host, port in zip(words[2:4], words[4:6], strict=True)
    )
    return {"version": "1", "source": source, "destination": destination}


def _proxy_v2(data: bytes) -> Details:
    try:
        reader = Reader(data)
        require(reader.number(1) == 0x21)  # version 2, command PROXY
        family = reader.number(1) >> 4
        body = reader.vector(2)
        require(family in (1, 2))
        size = 4 if family == 1 else 16
        source, destination = _number(body.take(size)), _number(body.take(size))
        return {
            "source": _place(source, body.number(2)),
            "destination": _place(destination, body.number(2)),
        }
    except (Short, Malformed):
        return {}


def pptp(data: bytes) -> Details | None:
    """RFC 2637, 2.1: a Start-Control-Connection-Request."""
    reader = Reader(data)
    size, kind, cookie, control = (reader.number(width) for width in (2, 2, 4, 2))
    require(size == 156 and kind == 1 and cookie == 0x1A2B3C4D and control == 1)
    try:
        reader.take(18)
        names = [text(reader.take(64).rstrip(b"\0")) for _ in range(2)]
    except Short:
        return {}
    return {"host": names[0], "vendor": names[1]}
