"""Protocols between machines: MQTT, AMQP, AJP, CoAP, and those of industry and buildings: Modbus,
S7, IEC 60870-5-104, DNP3, EtherNet/IP, BACnet. Pure; raises nothing but `Unreadable`.
"""

from __future__ import annotations

from superd_sniffer.recognisers.desktops import connection_request
from superd_sniffer.recognisers.reading import Details, Reader, Short, require, text

_MQTT_VERSIONS = {3: "3.1", 4: "3.1.1", 5: "5"}


def mqtt(data: bytes) -> Details | None:
    """MQTT 5.0, 3.1: CONNECT, and the client's name."""
    reader = Reader(data)
    require(reader.number(1) == 0x10)
    require(reader.varint() >= 10)
    length = reader.number(2)
    require(length in (4, 6))
    name = reader.take(length)
    require(name in (b"MQTT", b"MQIsdp"))
    try:
        level = reader.number(1)
        details = {"version": _MQTT_VERSIONS.get(level, str(level))}
        reader.take(3)
        if level == 5:
            properties = reader.part(reader.varint())
            properties.take(properties.left)
        client = reader.vector(2)
        return {**details, "client": text(client.take(client.left))}
    except Short:
        return {}


def amqp(data: bytes) -> Details | None:
    """AMQP 0-9-1 (4.2.2) and 1.0 (2.2): the protocol header."""
    if not data.startswith(b"AMQP") or len(data) < 8 or data[4] > 3:
        return None
    return {"version": ".".join(str(one) for one in (data[5:8] if data[4] != 1 else data[6:8]))}


_AJP_REQUESTS = {2: "forward", 7: "shutdown", 8: "ping", 10: "cping"}


def ajp(data: bytes) -> Details | None:
    """Apache's AJPv13: a packet to the container."""
    reader = Reader(data)
    require(reader.take(2) == b"\x12\x34")
    size, kind = reader.number(2), reader.number(1)
    require(1 <= size <= 8192 and kind in _AJP_REQUESTS and (kind == 2 or size == 1))
    return {"request": _AJP_REQUESTS[kind]}


_MODBUS_FUNCTIONS = frozenset((*range(1, 9), 11, 12, 15, 16, 17, 20, 21, 22, 23, 24, 43))


def modbus(data: bytes) -> Details | None:
    """Modbus on TCP/IP, 3.1.3: exactly one request, as it has few other marks."""
    reader = Reader(data)
    reader.take(2)
    require(reader.number(2) == 0)
    body = reader.vector(2)
    require(2 <= body.left <= 254 and reader.left == 0)
    unit, function = body.number(1), body.number(1)
    body.take(body.left)
    require(function in _MODBUS_FUNCTIONS)
    return {"unit": str(unit), "function": str(function)}


def s7(data: bytes) -> Details | None:
    """Siemens's S7: a transport connection (RFC 1006) with selectors, as in other ISO protocols."""
    reader = Reader(connection_request(data))
    while reader.left:
        kind = reader.number(1)
        require(kind in (0xC0, 0xC1, 0xC2))
        value = reader.vector(1)
        selector = value.take(value.left)
        if kind == 0xC2:
            return {"selector": selector.hex()}
    return None


def iec104(data: bytes) -> Details | None:
    """IEC 60870-5-104, 5.1: an unnumbered frame that starts or tests a connection."""
    if len(data) < 6 or data[:2] != b"\x68\x04" or data[3:6] != b"\0\0\0":
        return None
    kinds = {0x07: "start", 0x13: "stop", 0x43: "test"}
    return {"frame": kinds[data[2]]} if data[2] in kinds else None


def dnp3(data: bytes) -> Details | None:
    """IEEE 1815, 9.2: the header of a frame from a master; its checksum confirms it."""
    if len(data) < 10 or data[:2] != b"\x05\x64" or data[2] < 5 or not data[3] & 0x40:
        return None
    if _dnp3_checksum(data[:8]) != int.from_bytes(data[8:10], "little"):
        return None
    numbers = (int.from_bytes(data[at : at + 2], "little") for at in (4, 6))
    return dict(zip(("destination", "source"), map(str, numbers), strict=True))


def _dnp3_checksum(data: bytes) -> int:
    value = 0
    for one in data:
        value ^= one
        for _ in range(8):
            value = value >> 1 ^ (0xA6BC if value & 1 else 0)
    return value ^ 0xFFFF


_ENIP_COMMANDS = {0x04: "list-services", 0x63: "list-identity", 0x64: "list-interfaces",
                  0x65: "register-session"}  # fmt: skip


def enip(data: bytes) -> Details | None:
    """EtherNet/IP (CIP volume 2, 2-3): a command that needs no session."""
    reader = Reader(data)
    command, size = reader.number(2, "little"), reader.number(2, "little")
    require(command in _ENIP_COMMANDS and size == (4 if command == 0x65 else 0))
    require(not any(reader.take(8)))  # no session, no status
    reader.take(8)
    require(reader.number(4) == 0)  # no options
    return {"command": _ENIP_COMMANDS[command]}


def bacnet(data: bytes) -> Details | None:
    """BACnet/IP (ASHRAE 135, annex J): one of the functions with a message for a device."""
    reader = Reader(data)
    require(reader.number(1) == 0x81)
    function, size = reader.number(1), reader.number(2)
    require(function in (4, 9, 10, 11) and size == 4 + reader.left and reader.number(1) == 1)
    return {"function": str(function)}


_COAP_METHODS = {1: "GET", 2: "POST", 3: "PUT", 4: "DELETE", 5: "FETCH", 6: "PATCH", 7: "iPATCH"}
_URI_PATH = 11


def coap(data: bytes) -> Details | None:
    """RFC 7252, 3: a request that names a path."""
    reader = Reader(data)
    first, code = reader.number(1), reader.number(1)
    require(first >> 4 in (4, 5) and first & 15 <= 8 and code in _COAP_METHODS)
    reader.take(2 + (first & 15))
    option = 0
    path = []
    while reader.left and (head := reader.number(1)) != 0xFF:
        option += _coap_number(reader, head >> 4)
        value = reader.take(_coap_number(reader, head & 15))
        if option == _URI_PATH:
            path.append(value)
    require(bool(path) and option <= 0xFFFF)
    return {"method": _COAP_METHODS[code], "path": text(b"/" + b"/".join(path))}


def _coap_number(reader: Reader, nibble: int) -> int:
    require(nibble < 15)
    if nibble < 13:
        return nibble
    return 13 + reader.number(1) if nibble == 13 else 269 + reader.number(2)
