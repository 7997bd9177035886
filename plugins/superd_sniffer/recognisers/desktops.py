"""Protocols of remote access and debugging: RDP, VNC, X11, Telnet, ADB, Java's RMI. Pure; raises
nothing but `Unreadable`.
"""

from __future__ import annotations

from typing import Literal

from superd_sniffer.recognisers.reading import Details, Reader, Short, require, text

_COOKIE = b"Cookie: mstshash="
_RDP_NEGOTIATION = 1
_SECURITY = {0: "rdp", 1: "tls", 2: "credssp", 4: "rdstls", 8: "credssp-ex", 16: "aad"}


def connection_request(data: bytes) -> bytes:
    """Return the variable part of an ISO transport connection request (RFC 1006, X.224 13.3), as
    far as it is present.
    """
    reader = Reader(data)
    require(reader.take(2) == b"\x03\0")
    size = reader.number(2)
    length = reader.number(1)
    require(size == 5 + length and length >= 6)
    require(reader.number(1) & 0xF0 == 0xE0)
    require(reader.number(2) == 0)  # the destination reference is unknown yet
    reader.take(3)
    return reader.rest()[: length - 6]


def rdp(data: bytes) -> Details | None:
    """MS-RDPBCGR 2.2.1.1; old versions of RDP send no cookie and no negotiation."""
    rest = connection_request(data)
    details: Details = {}
    if rest.startswith((b"Cookie:", b"mstshash")):
        line, end, after = rest.partition(b"\r\n")
        if line.startswith(_COOKIE) and end:
            details["cookie"] = text(line.removeprefix(_COOKIE))
        rest = after if end else b""
    elif rest and rest[0] != _RDP_NEGOTIATION:
        return None
    if len(rest) >= 8 and rest[0] == _RDP_NEGOTIATION:
        asked = int.from_bytes(rest[4:8], "little")
        names = [name for bit, name in _SECURITY.items() if asked & bit]
        details["security"] = ",".join(names) or _SECURITY[0]
    size = int.from_bytes(data[2:4], "big")
    return details if rest or details or size == 11 else None


def vnc(data: bytes) -> Details | None:
    """RFC 6143, 7.1.1."""
    line = data[:12]
    if len(line) < 12 or not line.startswith(b"RFB ") or line[7:8] != b"." or line[11:] != b"\n":
        return None
    major, minor = line[4:7], line[8:11]
    if not (major.isdigit() and minor.isdigit()):
        return None
    return {"version": f"{int(major)}.{int(minor)}"}


def x11(data: bytes) -> Details | None:
    """X Window System Protocol, 8: the connection setup."""
    reader = Reader(data)
    mark = reader.take(2)
    require(mark in (b"l\0", b"B\0"))
    order: Literal["big", "little"] = "little" if mark == b"l\0" else "big"
    major, minor, name, value, unused = (reader.number(2, order) for _ in range(5))
    require(major == 11 and minor <= 9 and name <= 255 and value <= 4096 and unused == 0)
    try:
        authorization = text(reader.take(name))
    except Short:
        authorization = ""
    return {"version": f"{major}.{minor}", "authorization": authorization}


_VERBS = {0xFB: "will", 0xFC: "wont", 0xFD: "do", 0xFE: "dont"}
_OPTIONS = {
    0: "binary", 1: "echo", 3: "suppress-go-ahead", 5: "status", 24: "terminal-type", 31: "naws",
    32: "terminal-speed", 33: "flow-control", 34: "linemode", 35: "x-display", 36: "old-environ",
    37: "authentication", 38: "encrypt", 39: "environ",
}  # fmt: skip


def telnet(data: bytes) -> Details | None:
    """RFC 854 and 855: a negotiation of options."""
    require(len(data) >= 3 and data[0] == 0xFF and data[1] in _VERBS and data[2] <= 50)
    require(data[:3] != b"\xff\xfe\0")  # a byte order mark
    found = []
    for at in range(0, min(len(data) - 2, 48), 3):
        command, verb, option = data[at : at + 3]
        if command != 0xFF or verb not in _VERBS:
            break
        found.append(f"{_VERBS[verb]} {_OPTIONS.get(option, option)}")
    return {"options": ",".join(found)}


def adb(data: bytes) -> Details | None:
    """Android's protocol.txt: a CNXN message, whose last word is the first word inverted."""
    reader = Reader(data)
    require(reader.take(4) == b"CNXN")
    version, _, length = (reader.number(4, "little") for _ in range(3))
    reader.take(4)
    require(reader.take(4) == bytes(one ^ 0xFF for one in b"CNXN"))
    banner = data[24 : 24 + min(length, 1024)].rstrip(b"\0")
    return {"version": f"0x{version:08x}", "banner": text(banner)}


_RMI_KINDS = {0x4B: "stream", 0x4C: "single-op", 0x4D: "multiplex"}


def rmi(data: bytes) -> Details | None:
    """Java's RMI transport (10.2), or a serialized object without that."""
    if data.startswith(b"\xac\xed\0\x05"):
        return {"kind": "serialized object"}
    reader = Reader(data)
    require(reader.take(4) == b"JRMI")
    version, kind = reader.number(2), reader.number(1)
    require(version in (1, 2) and kind in _RMI_KINDS)
    return {"kind": _RMI_KINDS[kind]}
