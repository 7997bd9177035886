"""Protocols of single datagrams: NTP, SNMP, TFTP, STUN, IPMI, RADIUS, syslog. Pure; raises nothing
but `Unreadable`.
"""

from __future__ import annotations

from superd_sniffer.recognisers.reading import Details, Reader, require, text

_NTP_MODES = {1: "active", 3: "client", 6: "control", 7: "private"}


def ntp(data: bytes) -> Details | None:
    """RFC 5905 (7.3), RFC 9327 (2), and mode 7 of ntpd, its former list of clients."""
    require(len(data) >= 8)
    mode, version = data[0] & 7, data[0] >> 3 & 7
    require(mode in _NTP_MODES and 1 <= version <= 4)
    if mode in (1, 3):
        require(len(data) == 48 or (48 < len(data) <= 512 and len(data) % 4 == 0))
        require(data[1] <= 16 and (data[2] <= 17 or data[2] >= 0xE0))  # stratum and poll
        require(data[4] == data[8] == 0)  # root delay and root dispersion are below 256 s
    elif mode == 6:
        count = int.from_bytes(data[10:12], "big")
        require(len(data) >= 12 and data[0] < 0x40 and 1 <= data[1] <= 31)
        require(12 + count <= len(data) <= 12 + count + 24)
    else:
        require(data[0] < 0x40 and version >= 2 and data[1] == 0 and data[2] in (0, 2, 3))
        return {"version": str(version), "mode": "private", "request": str(data[3])}
    return {"version": str(version), "mode": _NTP_MODES[mode]}


_SNMP_REQUESTS = {0xA0: "get", 0xA1: "get-next", 0xA3: "set", 0xA5: "get-bulk"}
_SNMP_VERSIONS = {0: "1", 1: "2c", 3: "3"}


def snmp(data: bytes) -> Details | None:
    """RFC 1157 (4), RFC 3416 (3) and RFC 3412 (6). Records the community."""
    tag, message = Reader(data).ber()
    require(tag == 0x30)
    tag, number = message.ber()
    require(tag == 2 and number.left == 1)
    version = number.number(1)
    require(version in _SNMP_VERSIONS)
    tag, value = message.ber()
    if version == 3:
        require(tag == 0x30 and value.ber()[0] == 2)
        return {"version": "3"}
    require(tag == 4)
    community = value.take(value.left)
    tag, _ = message.ber()
    require(tag in _SNMP_REQUESTS)
    return {
        "version": _SNMP_VERSIONS[version],
        "community": text(community),
        "request": _SNMP_REQUESTS[tag],
    }


def tftp(data: bytes) -> Details | None:
    """RFC 1350, 5: a request to read or write a file."""
    reader = Reader(data)
    operation = reader.number(2)
    require(operation in (1, 2))
    name, mode = reader.until(b"\0", 512), reader.until(b"\0", 16).lower()
    require(bool(name) and mode in (b"netascii", b"octet", b"mail"))
    return {
        "operation": "read" if operation == 1 else "write",
        "file": text(name),
        "mode": text(mode),
    }


_STUN_METHODS = {1: "binding", 3: "allocate", 4: "refresh", 8: "create-permission"}


def stun(data: bytes) -> Details | None:
    """RFC 8489, 5."""
    reader = Reader(data)
    kind, size, cookie = reader.number(2), reader.number(2), reader.number(4)
    require(kind < 0x4000 and size % 4 == 0 and cookie == 0x2112A442)
    reader.take(12)
    require(reader.left >= size)
    return {"method": _STUN_METHODS.get(kind & 0x3EEF, f"0x{kind:04x}")}


def ipmi(data: bytes) -> Details | None:
    """RMCP (ASF 2.0, 3.2.2): an IPMI message, or a presence ping."""
    if data[:2] != b"\x06\0" or len(data) < 12:
        return None
    if data[3] == 6 and data[4:8] == b"\0\0\x11\xbe" and data[8] == 0x80:
        return {"message": "ping"}
    return {"message": "ipmi"} if data[3] == 7 and data[4] in (0, 2, 4, 6) else None


_RADIUS_CODES = {1: "access", 4: "accounting", 12: "status"}
_USER_NAME = 1


def radius(data: bytes) -> Details | None:
    """RFC 2865, 3, with attributes that fill the packet."""
    reader = Reader(data)
    code, _, size = reader.number(1), reader.number(1), reader.number(2)
    require(code in _RADIUS_CODES and size == len(data) and size > 20)
    reader.take(16)
    details = {"request": _RADIUS_CODES[code]}
    while reader.left:
        kind, length = reader.number(1), reader.number(1)
        require(kind > 0 and length >= 2)
        value = reader.take(length - 2)
        if kind == _USER_NAME:
            details["user"] = text(value)
    return details


def syslog(data: bytes) -> Details | None:
    """RFC 3164 and RFC 5424: the priority, and the message after it."""
    priority, closed, message = data[:512].partition(b">")
    number = priority[1:]
    if priority[:1] != b"<" or not closed or not number.isdigit() or len(number) > 3:
        return None
    require(int(number) <= 191 and (len(number) == 1 or number[:1] != b"0") and bool(message))
    return {"priority": text(number), "message": text(message.partition(b"\n")[0])}
