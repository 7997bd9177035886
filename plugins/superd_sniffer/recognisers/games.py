"""Protocols of game servers: Valve's, Quake III's, Minecraft's. Pure; raises nothing but
`Unreadable`.
"""

from __future__ import annotations

from superd_sniffer.recognisers.reading import Details, Reader, require, text

_QUERIES = {0x54: "info", 0x55: "players", 0x56: "rules", 0x57: "challenge", 0x69: "ping"}


def steam(data: bytes) -> Details | None:
    """Valve's server queries."""
    if not data.startswith(b"\xff\xff\xff\xff") or len(data) < 5 or data[4] not in _QUERIES:
        return None
    is_info = data[4:25] == b"TSource Engine Query\0"
    return {"query": _QUERIES[data[4]]} if is_info or (data[4] != 0x54 and len(data) <= 9) else None


def quake(data: bytes) -> Details | None:
    """The connectionless packets of Quake III's engine and its derivatives."""
    word = data[4:64].split()[:1]
    known = (b"getstatus", b"getinfo", b"status", b"getchallenge", b"getservers", b"rcon")
    is_query = data.startswith(b"\xff\xff\xff\xff") and word and word[0] in known
    return {"query": text(word[0])} if is_query else None


_MINECRAFT_STATES = {1: "status", 2: "login", 3: "transfer"}


def minecraft(data: bytes) -> Details | None:
    """Minecraft's handshake, with the requested host; or the ping of older versions."""
    if data == b"\xfe\x01" or data.startswith(b"\xfe\x01\xfa"):
        return {"request": "ping"}
    reader = Reader(data)
    size = reader.varint()
    require(6 <= size <= 300)
    body = reader.part(size)
    require(body.varint() == 0 and body.varint() < 1 << 31)
    length = body.varint()
    require(length + 3 == body.left)
    host, port, state = body.take(length), body.number(2), body.number(1)
    require(state in _MINECRAFT_STATES)
    place = f"{text(host)}:{port}"
    return {"request": _MINECRAFT_STATES[state], "place": place}
