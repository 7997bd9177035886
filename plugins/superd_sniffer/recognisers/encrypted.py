"""Encrypted protocols, by their unencrypted beginning: TLS, DTLS, QUIC, SSH, IKE, WireGuard,
OpenVPN. Pure; raises nothing but `Unreadable`.
"""

from __future__ import annotations

from superd_sniffer.recognisers.reading import Details, Reader, require, text
from superd_sniffer.recognisers.tls import (
    VERSIONS,
    ClientHello,
    begins_datagram_hello,
    begins_hello,
    client_hello,
    datagram_hello,
    ja4,
)


def tls(data: bytes) -> Details | None:
    """RFC 8446, and the hello of SSL 2.0 (RFC 6101, E), which may offer later versions."""
    if begins_hello(data):
        return _of_hello(client_hello(data))
    if len(data) >= 5 and data[0] & 0x80 and data[2] == 1:
        version = int.from_bytes(data[3:5], "big")
        body = Reader(data[5:])
        if version in (0x0002, 0x0300, 0x0301, 0x0302, 0x0303):
            ciphers, session, challenge = body.number(2), body.number(2), body.number(2)
            size = int.from_bytes(data[:2], "big") & 0x7FFF
            require(size == 9 + ciphers + session + challenge and ciphers % 3 == 0)
            return {"version": VERSIONS[version], "hello": "ssl 2.0"}
    return None


def dtls(data: bytes) -> Details | None:
    """RFC 9147."""
    return _of_hello(datagram_hello(data)) if begins_datagram_hello(data) else None


def _of_hello(hello: ClientHello | None) -> Details:
    if hello is None:
        return {"hello": "malformed"}
    version = hello.highest_version
    return {
        "version": VERSIONS.get(version, f"0x{version:04x}") if version else "",
        "sni": hello.server_name,
        "alpn": ",".join(text(one) for one in hello.alpn[:20]),
        "ja4": ja4(hello) if hello.is_complete else "",
        "hello": "" if hello.is_complete else "cut off",
    }


def ssh(data: bytes) -> Details | None:
    """RFC 4253, 4.2."""
    if not data.startswith((b"SSH-1.", b"SSH-2.")):
        return None
    return {"banner": text(data[:512].partition(b"\n")[0].rstrip(b"\r"))}


_QUIC_VERSIONS = {0x00000001: "1", 0x6B3343CF: "2"}


def quic(data: bytes) -> Details | None:
    """RFC 8999, 5.1: a long header of a known version, or of a reserved one (RFC 9000, 15)."""
    reader = Reader(data)
    first, version = reader.number(1), reader.number(4)
    require(first & 0xC0 == 0xC0)
    require(reader.vector(1).left <= 20)  # connection IDs
    require(reader.vector(1).left <= 20 and reader.left > 0)
    if name := _QUIC_VERSIONS.get(version):
        return {"version": name}
    if version >> 8 == 0xFF0000:
        return {"version": f"draft-{version & 0xFF}"}
    if version >> 16 in (0x5130, 0x5430):  # Google QUIC, such as Q050 and T051
        return {"version": text(version.to_bytes(4, "big"))}
    if version & 0x0F0F0F0F == 0x0A0A0A0A:
        return {"version": f"0x{version:08x}"}
    return None


_IKE_EXCHANGES = {
    0x10: {1: "base", 2: "main", 3: "authentication", 4: "aggressive", 5: "informational"},
    0x20: {34: "sa-init", 35: "auth", 36: "create-child-sa", 37: "informational"},
}


def ike(data: bytes) -> Details | None:
    """RFC 2408 (3.1) and RFC 7296 (3.1), also after the marker of RFC 3948 (2.2)."""
    reader = Reader(data.removeprefix(b"\0\0\0\0"))
    whole = reader.left
    require(any(reader.take(8)))  # the initiator's SPI
    reader.take(9)
    version, exchange = reader.number(1), reader.number(1)
    reader.take(5)
    require(reader.number(4) == whole)
    kind = _IKE_EXCHANGES.get(version, {}).get(exchange)
    return {"version": str(version >> 4), "exchange": kind} if kind else None


def wireguard(data: bytes) -> Details | None:
    """The handshake initiation of WireGuard's whitepaper, 5.4.2."""
    return {} if len(data) == 148 and data.startswith(b"\1\0\0\0") else None


def openvpn(data: bytes) -> Details | None:
    """A client's hard reset, version 2 or 3, without a key for the control channel."""
    return {} if len(data) == 14 and data[0] in (0x38, 0x50) and not any(data[9:]) else None


def openvpn_stream(data: bytes) -> Details | None:
    """The same after its length."""
    return openvpn(data[2:]) if data[:2] == b"\0\x0e" else None
