"""Protocols of names and directories: DNS, NetBIOS names, LDAP, Kerberos, DHCP. Pure; raises
nothing but `Unreadable`.
"""

from __future__ import annotations

from collections.abc import Callable

from superd_sniffer.recognisers.reading import Details, Reader, Short, require, text

NameReader = Callable[[Reader], str]

_TYPES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT", 28: "AAAA",
    33: "SRV", 35: "NAPTR", 43: "DS", 46: "RRSIG", 48: "DNSKEY", 64: "SVCB", 65: "HTTPS",
    250: "TSIG", 251: "IXFR", 252: "AXFR", 255: "ANY", 256: "URI", 257: "CAA",
}  # fmt: skip
_CLASSES = {1: "IN", 3: "CH", 4: "HS", 254: "NONE", 255: "ANY"}
_OPCODES = {0: "query", 4: "notify", 5: "update"}
_NETBIOS_TYPES = {0x20: "NB", 0x21: "NBSTAT"}


def dns(data: bytes) -> Details | None:
    """RFC 1035, 4.1, a query; over UDP also a multicast one (RFC 6762)."""
    return _status(data) or _query(Reader(data), _domain, _TYPES, _CLASSES)


def dns_stream(data: bytes) -> Details | None:
    """RFC 1035, 4.2.2."""
    return _status(data[2:]) or _query(Reader(data).vector(2), _domain, _TYPES, _CLASSES)


def netbios(data: bytes) -> Details | None:
    """RFC 1002, 4.2: a query for a name, which is spelled in the letters A to P."""
    return _query(Reader(data), _netbios_name, _NETBIOS_TYPES, {1: "IN"})


def _status(message: bytes) -> Details | None:
    """A request for a server's status, which RFC 1035 mentions and no RFC defines."""
    return {"opcode": "status"} if message[2:] == b"\x10\0" + bytes(8) else None


def _query(
    reader: Reader, name_of: NameReader, types: dict[int, str], classes: dict[int, str]
) -> Details | None:
    reader.take(2)
    flags = reader.number(2)
    questions, answers, authorities, additions = (reader.number(2) for _ in range(4))
    opcode = _OPCODES.get(flags >> 11)  # an answer has a higher bit set
    if opcode is None or flags & 0x004F:  # the reserved bit, and a result
        return None
    require(1 <= questions <= 32 and answers + authorities <= 64 and additions <= 4)
    require(opcode in ("notify", "update") or answers + authorities <= 1 or questions > 1)
    name, kind, group = name_of(reader), reader.number(2), reader.number(2)
    group &= 0x7FFF  # the top bit of a multicast query requests a unicast answer
    require(kind > 0 and group in classes)
    require(questions + answers + authorities + additions > 1 or not reader.left)
    return {
        "name": name,
        "type": types.get(kind, f"TYPE{kind}"),
        "class": classes[group] if group != 1 else "",
        "opcode": opcode if opcode != "query" else "",
    }


def _domain(reader: Reader) -> str:
    labels = []
    size = 0
    while length := reader.number(1):
        size += 1 + length
        require(length <= 63 and size <= 254)  # no pointer: no name precedes it
        labels.append(reader.take(length))
    return text(b".".join(labels)) or "."


def netbios_label(reader: Reader) -> tuple[str, int]:
    """Read a first-level encoded name (RFC 1001, 14.1); return the name and its suffix."""
    require(reader.number(1) == 32)
    letters = reader.take(32)
    require(all(0x41 <= one <= 0x50 for one in letters))
    halves = [one - 0x41 for one in letters]
    packed = bytes(high << 4 | low for high, low in zip(halves[::2], halves[1::2], strict=True))
    return text(packed[:15].rstrip(b" \0")), packed[15]


def _netbios_name(reader: Reader) -> str:
    label, suffix = netbios_label(reader)
    scope = _domain(reader)
    name = f"{label}<{suffix:02x}>"
    return name if scope == "." else f"{name}.{scope}"


_LDAP_OPERATIONS = {
    0x60: "bind", 0x42: "unbind", 0x63: "search", 0x66: "modify", 0x68: "add", 0x4A: "delete",
    0x6E: "compare", 0x50: "abandon", 0x77: "extended",
}  # fmt: skip


def ldap(data: bytes) -> Details | None:
    """RFC 4511, 4.1.1; over UDP RFC 1798."""
    tag, message = Reader(data).ber()
    require(tag == 0x30)
    tag, number = message.ber()
    require(tag == 2 and 1 <= number.left <= 4)
    number.take(number.left)
    tag = message.number(1)
    operation = _LDAP_OPERATIONS.get(tag)
    if operation is None:
        return None
    try:
        return {"operation": operation, "dn": _ldap_name(tag, message)}
    except Short:
        return {"operation": operation}


def _ldap_name(tag: int, message: Reader) -> str:
    length = message.number(1)
    body = message.part(message.number(length & 0x7F) if length & 0x80 else length)
    if tag == 0x60:
        require(body.ber()[0] == 2)  # the version
    elif tag != 0x63:
        return ""
    kind, name = body.ber()
    require(kind == 4)
    return text(name.take(name.left))


def kerberos(data: bytes) -> Details | None:
    """RFC 4120, 5.4.1: a request for a ticket."""
    return _ticket_request(Reader(data))


def kerberos_stream(data: bytes) -> Details | None:
    """RFC 4120, 7.2.2."""
    return _ticket_request(Reader(data).vector(4))


def _ticket_request(reader: Reader) -> Details | None:
    tag, message = reader.ber()
    require(tag in (0x6A, 0x6C))
    inner, body = message.ber()
    require(inner == 0x30)
    require(body.take(5) == b"\xa1\x03\x02\x01\x05")  # the version of the protocol
    return {"request": "as" if tag == 0x6A else "tgs"}


_DHCP_MESSAGES = {1: "discover", 3: "request", 4: "decline", 7: "release", 8: "inform"}


def dhcp(data: bytes) -> Details | None:
    """RFC 2131, 2, and RFC 2132: a client's request."""
    if len(data) < 240 or data[0] != 1 or data[236:240] != b"\x63\x82\x53\x63":
        return None
    details = {"mac": data[28:34].hex(":")}
    options = Reader(data[240:])
    while options.left and (kind := options.number(1)) != 255:
        if not kind:
            continue
        value = options.vector(1)
        body = value.take(value.left)
        if kind == 53:
            details["message"] = _DHCP_MESSAGES.get(int.from_bytes(body, "big"), "")
        elif kind in (12, 60):
            details["host" if kind == 12 else "vendor"] = text(body)
    return details
