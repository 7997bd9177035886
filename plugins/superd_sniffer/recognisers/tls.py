"""The ClientHello of TLS and DTLS, and its JA4 fingerprint. Decrypts nothing.

A hello may be spread over several records, and may be cut off: then it has the fields before the
cut. Data that breaks RFC 8446 (4.1.2, 5.1), RFC 6066 (3) or RFC 7301 is not a hello. DTLS is
RFC 9147, with the hello in one record and one fragment.

JA4 is FoxIO's public description of a TLS client (technical_details/JA4.md), under the BSD licence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from superd_sniffer.recognisers.reading import Malformed, Reader, Short, require

_HANDSHAKE, _CLIENT_HELLO = 0x16, 1
_MAX_RECORD_BYTES = 1 << 14
_MAX_RECORDS = 1024  # some clients send a hello in records of one byte each
_MAX_HELLO_BYTES = 1 << 14  # more than any client sends; the length field allows 16 MiB
_SERVER_NAME, _SIGNATURE_ALGORITHMS, _ALPN, _SUPPORTED_VERSIONS = 0, 13, 16, 43

VERSIONS = {
    0x0304: "1.3", 0x0303: "1.2", 0x0302: "1.1", 0x0301: "1.0", 0x0300: "ssl 3.0",
    0x0002: "ssl 2.0", 0xFEFF: "dtls 1.0", 0xFEFD: "dtls 1.2", 0xFEFC: "dtls 1.3",
}  # fmt: skip
_JA4_VERSIONS = {
    0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10", 0x0300: "s3", 0x0002: "s2",
    0xFEFF: "d1", 0xFEFD: "d2", 0xFEFC: "d3",
}  # fmt: skip


@dataclass
class ClientHello:
    """The offers of a hello, including GREASE (RFC 8701), each list in the order of the client."""

    version: int = 0  # the legacy version
    is_datagram: bool = False
    is_complete: bool = False
    server_name: str = ""
    supported_versions: list[int] = field(default_factory=list)
    alpn: list[bytes] = field(default_factory=list)
    ciphers: list[int] = field(default_factory=list)
    extensions: list[int] = field(default_factory=list)
    signature_algorithms: list[int] = field(default_factory=list)

    @property
    def highest_version(self) -> int:
        """The requested version by the rules of JA4: the greatest number."""
        return max(_without_grease(self.supported_versions), default=self.version)


def begins_hello(data: bytes) -> bool:
    """Return whether a stream begins with the record of a ClientHello."""
    return (
        len(data) >= 6
        and data[0] == _HANDSHAKE
        and data[1] == 3
        and data[2] <= 4
        and 1 <= int.from_bytes(data[3:5], "big") <= _MAX_RECORD_BYTES
        and data[5] == _CLIENT_HELLO
    )


def begins_datagram_hello(data: bytes) -> bool:
    """Return whether a datagram begins with the record of a ClientHello."""
    return (
        len(data) >= 14
        and data[0] == _HANDSHAKE
        and data[1:3] in (b"\xfe\xff", b"\xfe\xfd")
        and data[3:5] == b"\0\0"  # nothing is encrypted yet
        and data[13] == _CLIENT_HELLO
    )


def client_hello(data: bytes) -> ClientHello | None:
    """Return the hello at the beginning of a stream, as far as it is present; None without one."""
    if not begins_hello(data):
        return None
    try:
        message = _joined(data)
        if len(message) < 4:
            return ClientHello()
        size = int.from_bytes(message[1:4], "big")
        require(size <= _MAX_HELLO_BYTES)
        return _hello(Reader(message[4 : 4 + size], size), ClientHello())
    except Malformed:
        return None


def datagram_hello(data: bytes) -> ClientHello | None:
    """Return the hello of a datagram; None without one, or if it is fragmented."""
    if not begins_datagram_hello(data):
        return None
    try:
        record = Reader(data[11:], len(data) - 11).vector(2)
        record.take(1)
        size = record.number(3)
        _, offset, piece = record.number(2), record.number(3), record.number(3)
        require(offset == 0 and piece == size and record.left == size)
        return _hello(record, ClientHello(is_datagram=True))
    except (Malformed, Short):
        return None


def _joined(data: bytes) -> bytes:
    """Return the contents of the records of the first message, as far as they are present."""
    found = bytearray()
    at = 0
    for _ in range(_MAX_RECORDS):
        if at + 5 > len(data):
            break
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        require(data[at] == _HANDSHAKE and data[at + 1] == 3 and 0 < length <= _MAX_RECORD_BYTES)
        found += data[at + 5 : at + 5 + length]
        at += 5 + length
        if len(found) >= 4 and len(found) >= 4 + int.from_bytes(found[1:4], "big"):
            break
    return bytes(found)


def _hello(body: Reader, hello: ClientHello) -> ClientHello:
    try:
        hello.version = body.number(2)
        body.take(32)  # random
        session = body.vector(1)
        require(session.left <= 32)
        if hello.is_datagram:
            body.vector(1)  # the cookie
        ciphers = body.vector(2)
        require(ciphers.left >= 2)
        hello.ciphers = ciphers.pairs()
        require(body.vector(1).left >= 1)  # compression methods
        if body.left:
            extensions = body.vector(2)
            require(body.left == 0)
            _read_extensions(extensions, hello)
        body.take(0)  # raises Short if skipped bytes are missing
        hello.is_complete = True
    except Short:
        pass
    return hello


def _read_extensions(extensions: Reader, hello: ClientHello) -> None:
    seen = set()
    while extensions.left:
        kind = extensions.number(2)
        require(kind not in seen)
        seen.add(kind)
        hello.extensions.append(kind)
        body = extensions.vector(2)
        if read := _EXTENSIONS.get(kind):
            read(body, hello)


def _read_server_name(body: Reader, hello: ClientHello) -> None:
    names = body.vector(2)
    require(body.left == 0)
    while names.left:
        kind, name = names.number(1), names.vector(2)
        if kind == 0 and not hello.server_name:
            # not validated: the caller escapes it
            hello.server_name = name.take(name.left).decode("utf-8", "backslashreplace")


def _read_versions(body: Reader, hello: ClientHello) -> None:
    hello.supported_versions = _all(body, body.vector(1))


def _read_signature_algorithms(body: Reader, hello: ClientHello) -> None:
    hello.signature_algorithms = _all(body, body.vector(2))


def _all(outer: Reader, inner: Reader) -> list[int]:
    require(outer.left == 0 and inner.left >= 2)
    return inner.pairs()


def _read_alpn(body: Reader, hello: ClientHello) -> None:
    protocols = body.vector(2)
    require(body.left == 0)
    while protocols.left:
        protocol = protocols.vector(1)
        hello.alpn.append(protocol.take(protocol.left))


_EXTENSIONS = {
    _SERVER_NAME: _read_server_name,
    _SIGNATURE_ALGORITHMS: _read_signature_algorithms,
    _ALPN: _read_alpn,
    _SUPPORTED_VERSIONS: _read_versions,
}


def ja4(hello: ClientHello, *, quic: bool = False) -> str:
    """Return the fingerprint of a complete hello."""
    ciphers = sorted(_without_grease(hello.ciphers))
    extensions = sorted(_without_grease(hello.extensions))
    kept = [one for one in extensions if one not in (_SERVER_NAME, _ALPN)]
    algorithms = list(_without_grease(hello.signature_algorithms))
    tail = _codes(kept) + ("_" + _codes(algorithms) if algorithms else "")
    return (
        ("q" if quic else "d" if hello.is_datagram else "t")
        + _JA4_VERSIONS.get(hello.highest_version, "00")
        + ("d" if _SERVER_NAME in extensions else "i")
        + f"{min(len(ciphers), 99):02}{min(len(extensions), 99):02}"
        + _ends(hello.alpn[0] if hello.alpn else b"")
        + f"_{_digest(_codes(ciphers)) if ciphers else _NOTHING}"
        + f"_{_digest(tail) if kept else _NOTHING}"
    )


_NOTHING = "0" * 12


def _without_grease(values: Iterable[int]) -> Iterable[int]:
    return (one for one in values if not (one & 0x0F0F == 0x0A0A and one >> 8 == one & 0xFF))


def _codes(values: Iterable[int]) -> str:
    return ",".join(f"{value:04x}" for value in values)


def _digest(codes: str) -> str:
    return hashlib.sha256(codes.encode()).hexdigest()[:12]


def _ends(protocol: bytes) -> str:
    """Return the first and the last character of a protocol's name, or of its bytes in hex."""
    if not protocol:
        return "00"
    first, last = protocol[:1], protocol[-1:]
    if first.isalnum() and last.isalnum():  # of bytes: ASCII only
        return (first + last).decode("ascii")
    return protocol.hex()[0] + protocol.hex()[-1]
