"""Hellos of TLS and DTLS with their known JA4, and hellos made from the lists of JA4_ro.

Those in bytes were recorded on loopback; FoxIO's own program confirms the JA4 of the TLS ones.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

OPENSSL = bytes.fromhex(
    "160301013a0100013603036aea4fd7b28490847c970bb316c8c828777ebf860ac634f0d922325e5863642320"
    "82bfe9cbcc295233de07ed77a31d48cb6b433ab730ae36ec54f4ec94427240ae003e130213031301c02cc030"
    "009fcca9cca8ccaac02bc02f009ec024c028006bc023c0270067c00ac0140039c009c0130033009d009c003d"
    "003c0035002f00ff010000af00000012001000000d6b6e6f636b2e6578616d706c65000b000403000102000a"
    "00160014001d0017001e0019001801000101010201030104002300000016000000170000000d002a00280403"
    "05030603080708080809080a080b080408050806040105010601030303010302040205020602002b00090803"
    "04030303020301002d00020101003300260024001d0020cb6fd58a947692d340e4c2fc46ca3b3522b70c0915"
    "0d85dc9c1dec6791226f39"
)
OPENSSL_TLS_1_2 = bytes.fromhex(
    "16030100c6010000c203037a678bf7f4c3bcc78f668ceb8c798cc02c7fa0f3f8243da1226c198248b1aa9000"
    "0038c02cc030009fcca9cca8ccaac02bc02f009ec024c028006bc023c0270067c00ac0140039c009c0130033"
    "009d009c003d003c0035002f00ff01000061000b000403000102000a000c000a001d0017001e001900180023"
    "00000010000b000908687474702f312e310016000000170000000d002a002804030503060308070808080908"
    "0a080b080408050806040105010601030303010302040205020602"
)
OPENSSL_DTLS = bytes.fromhex(
    "16feff000000000000000000d6010000ca00000000000000cafefd057a0fa5d573d1bb231701d1de03b2efda"
    "1f46e5ae2d4a2fe13476b1dae35d0400000038c02cc030009fcca9cca8ccaac02bc02f009ec024c028006bc0"
    "23c0270067c00ac0140039c009c0130033009d009c003d003c0035002f00ff0100006800000012001000000d"
    "6b6e6f636b2e6578616d706c65000b000403000102000a000c000a001d0017001e0019001800230000001600"
    "0000170000000d002a0028040305030603080708080809080a080b0804080508060401050106010303030103"
    "02040205020602"
)
PYTHON = bytes.fromhex(
    "1603010200010001fc0303d34d0dfb9febb755f685929354101c10aa90beccad9e453c52b0cb3c20cce3a220"
    "98b65602e141d16a9aa4cb909c625db2b0796f954177ecde7d5c02a61012e8270024130213031301c02cc030"
    "c02bc02fcca9cca8c024c028c023c027009f009e006b006700ff0100018f00000012001000000d6b6e6f636b"
    "2e6578616d706c65000b000403000102000a00160014001d0017001e00190018010001010102010301040023"
    "00000010000500030268320016000000170000000d002a0028040305030603080708080809080a080b080408"
    "050806040105010601030303010302040205020602002b00050403040303002d00020101003300260024001d"
    "0020e45f6ee9c4b89237adb78a3e9ddc66551436b46b539197e07e65d4cc181d7d03001500d7000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000"
)

RECORDED = {
    "t13d311000_e8f1e7e78f70_1f22a2ca17c4": OPENSSL,
    "t12i2807h1_d943125447b4_e7e480e5a997": OPENSSL_TLS_1_2,
    "t13d1812h2_85036bcba153_d41ae481755e": PYTHON,
}


class Published(NamedTuple):
    """A client as FoxIO publishes it: JA4, and JA4_ro, the lists in the order of the hello."""

    ja4: str
    original: str
    alpn: bytes


CHROME_CIPHERS = "1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035"  #
CHROME_ALGORITHMS = "0403,0804,0401,0503,0805,0501,0806,0601"

PUBLISHED = [
    # the example of technical_details/JA4.md
    Published(
        "t13d1516h2_8daaf6152771_e5627efa2ab1",
        f"t13d1516h2_{CHROME_CIPHERS}_001b,0000,0033,0010,4469,0017,002d,000d,0005,0023,0012,002b,"
        f"ff01,000b,000a,0015_{CHROME_ALGORITHMS}",
        b"h2",
    ),
    # from its test data, one of each kind
    Published(
        "t13d1516h1_8daaf6152771_e5627efa2ab1",
        f"t13d1516h1_{CHROME_CIPHERS}_000d,0033,0000,ff01,002b,0023,002d,0005,0012,000b,0017,4469,"
        f"0010,001b,000a,0015_{CHROME_ALGORITHMS}",
        b"http/1.1",
    ),
    Published(
        "t13d151400_8daaf6152771_de4a06bb82e3",
        f"t13d151400_{CHROME_CIPHERS}_0033,002b,001b,0000,0012,002d,000d,000a,0005,0023,0017,ff01,"
        f"000b,0015_{CHROME_ALGORITHMS}",
        b"",
    ),
    Published(
        "t13d1715h2_5b57614c22b0_3d5424432f57",
        "t13d1715h2_1301,1303,1302,c02b,c02f,cca9,cca8,c02c,c030,c00a,c009,c013,c014,009c,009d,002f,"
        "0035_0000,0017,ff01,000a,000b,0023,0010,0005,0022,0033,002b,000d,002d,001c,0015_0403,0503,"
        "0603,0804,0805,0806,0401,0501,0601,0203,0201",
        b"h2",
    ),
    Published(
        "t12d4605h2_85626a9a5f7f_aaf95bb78ec9",
        "t12d4605h2_c030,c02c,c028,c024,c014,c00a,009f,006b,0039,cca9,cca8,ccaa,ff85,00c4,0088,0081,"
        "009d,003d,0035,00c0,0084,c02f,c02b,c027,c023,c013,c009,009e,0067,0033,00be,0045,009c,003c,"
        "002f,00ba,0041,c011,c007,0005,0004,c012,c008,0016,000a,00ff_0000,000b,000a,000d,0010_0601,"
        "0603,efef,0501,0503,0401,0403,eeee,eded,0301,0303,0201,0203",
        b"h2",
    ),
    Published(
        "t10d230100_6a57a6f57151_000000000000",
        "t10d230100_0039,0038,0035,0016,0013,000a,0033,0032,002f,009a,0099,0096,0005,0004,0015,0012,"
        "0009,0014,0011,0008,0006,0003,00ff_0000_",
        b"",
    ),
]


class Offer(NamedTuple):
    """The fields of a hello; other extensions have an empty body."""

    ciphers: Sequence[int]
    extensions: Sequence[int] = ()
    algorithms: Sequence[int] = ()
    versions: Sequence[int] = ()
    alpn: Sequence[bytes] = ()
    name: bytes = b"knock.example"
    version: int = 0x0303

    def hello(self) -> bytes:
        """Return the message, without a record."""
        extensions = b"".join(
            struct.pack("!H", one) + vector(2, self._body(one)) for one in self.extensions
        )
        body = (
            struct.pack("!H32s", self.version, b"R" * 32)
            + vector(1, b"S" * 32)
            + vector(2, packed(self.ciphers))
            + vector(1, b"\0")
            + (vector(2, extensions) if self.extensions else b"")
        )
        return b"\x01" + vector(3, body)

    def _body(self, kind: int) -> bytes:
        if kind == 0:
            return vector(2, b"\0" + vector(2, self.name))
        if kind == 13:
            return vector(2, packed(self.algorithms))
        if kind == 16:
            return vector(2, b"".join(vector(1, one) for one in self.alpn))
        return vector(1, packed(self.versions)) if kind == 43 else b""


def vector(width: int, data: bytes) -> bytes:
    return len(data).to_bytes(width, "big") + data


def packed(numbers: Sequence[int]) -> bytes:
    return struct.pack(f"!{len(numbers)}H", *numbers)


def in_records(message: bytes, size: int = 1 << 14) -> bytes:
    """Return a message in records of at most `size` bytes."""
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + vector(2, part) for part in parts)


def offer_of(published: Published) -> Offer:
    head, ciphers, extensions, algorithms = published.original.split("_")
    versions = [0x0304, 0x0303] if head[1:3] == "13" else []
    return Offer(
        numbers(ciphers), numbers(extensions), numbers(algorithms), versions,
        [published.alpn] if published.alpn else [],
        version={"13": 0x0303, "12": 0x0303, "10": 0x0301}[head[1:3]],
    )  # fmt: skip


def numbers(codes: str) -> list[int]:
    return [int(code, 16) for code in codes.split(",") if code]
