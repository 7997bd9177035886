"""Valid and invalid hellos, and their JA4 compared with the values that FoxIO publishes."""

from __future__ import annotations

import ssl
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from superd_sniffer.recognisers.tls import ClientHello, client_hello, datagram_hello, ja4

from tests.plugins.sniffer.hellos import (
    OPENSSL,
    OPENSSL_DTLS,
    PUBLISHED,
    RECORDED,
    Offer,
    Published,
    in_records,
    offer_of,
)

GREASE = 0x3A3A


def read(offer: Offer) -> ClientHello:
    hello = client_hello(in_records(offer.hello()))
    assert hello is not None
    assert hello.is_complete
    return hello


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda one: one.ja4)
def test_ja4_matches_published_values(published: Published) -> None:
    assert ja4(read(offer_of(published))) == published.ja4


@pytest.mark.parametrize("expected", RECORDED)
def test_ja4_of_real_clients(expected: str) -> None:
    hello = client_hello(RECORDED[expected])
    assert hello is not None
    assert ja4(hello) == expected


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda one: one.ja4)
def test_grease_and_order_do_not_change_ja4(published: Published) -> None:
    offer = offer_of(published)
    greasy = offer._replace(
        ciphers=[GREASE, *reversed(offer.ciphers)],
        extensions=[0x0A0A, *reversed(offer.extensions), 0xFAFA],
        algorithms=[GREASE, *offer.algorithms],
        versions=[GREASE, *offer.versions] if offer.versions else [],
    )
    assert ja4(read(greasy)) == published.ja4


# the table of JA4.md
@pytest.mark.parametrize(
    ("protocol", "ends"),
    [
        ("", "00"), ("h2", "h2"), ("http/1.1", "h1"), ("x", "xx"), ("\xab", "ab"), (" ", "20"),
        ("\xab\xcd", "ad"), (" a", "21"), ("0\xab", "3b"), ("a ", "60"), ("01\xab\xcd", "3d"),
        ("0\xab\xcd1", "01"),
    ],
)  # fmt: skip
def test_ja4_has_the_ends_of_the_first_protocol(protocol: str, ends: str) -> None:
    offer = Offer([0x1301], [16], alpn=[protocol.encode("latin-1"), b"h3"])
    assert ja4(read(offer))[8:10] == ends


def test_ja4_of_empty_and_of_long_lists() -> None:
    assert ja4(read(Offer([GREASE]))) == "t12i000000_000000000000_000000000000"
    assert ja4(read(Offer([GREASE])), quic=True).startswith("q12i")
    many = Offer(list(range(200)), [*range(1000, 1120)])
    assert ja4(read(many)).startswith("t12i999900_")


@pytest.mark.parametrize(
    ("versions", "legacy", "expected"),
    [
        ([], 0x0301, "10"), ([], 0x0300, "s3"), ([], 0x0505, "00"), ([0x7F1C], 0x0303, "00"),
        ([0x0303, 0x0304], 0x0303, "13"), ([GREASE], 0x0302, "11"),
    ],
)  # fmt: skip
def test_ja4_has_the_highest_version(versions: list[int], legacy: int, expected: str) -> None:
    offer = Offer([0x1301], [43] if versions else [], versions=versions, version=legacy)
    assert ja4(read(offer))[1:3] == expected


def test_all_fields_of_a_hello_are_read() -> None:
    hello = client_hello(OPENSSL)
    assert hello is not None
    assert hello.version == 0x0303
    assert hello.supported_versions == [0x0304, 0x0303, 0x0302, 0x0301]
    assert hello.server_name == "knock.example"
    assert hello.alpn == []
    assert len(hello.ciphers) == 31
    assert hello.extensions == [0, 11, 10, 35, 22, 23, 13, 43, 45, 51]
    assert hello.signature_algorithms[:2] == [0x0403, 0x0503]


def test_a_hello_of_dtls_is_read() -> None:
    hello = datagram_hello(OPENSSL_DTLS)
    assert hello is not None
    assert hello.is_complete
    assert hello.server_name == "knock.example"
    assert ja4(hello) == "dd2d280700_d943125447b4_e7e480e5a997"
    assert datagram_hello(OPENSSL_DTLS[:-1]) is None
    assert datagram_hello(OPENSSL) is None


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100, 313])
def test_a_hello_may_be_spread_over_records(size: int) -> None:
    message = OPENSSL[5:]
    whole = client_hello(OPENSSL)
    assert client_hello(in_records(message, size)) == whole
    assert client_hello(OPENSSL + b"\x14\x03\x03\0\x01\x01") == whole


def test_a_hello_that_is_cut_off_has_the_fields_before() -> None:
    whole = client_hello(OPENSSL)
    assert whole is not None
    for end in range(6, len(OPENSSL)):
        hello = client_hello(OPENSSL[:end])
        assert hello is not None
        assert not hello.is_complete
        assert hello.ciphers == whole.ciphers[: len(hello.ciphers)]
        assert hello.extensions == whole.extensions[: len(hello.extensions)]
        assert hello.server_name in ("", whole.server_name)


def changed(at: int, *values: int) -> bytes:
    data = bytearray(OPENSSL)
    data[at : at + len(values)] = values
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        OPENSSL[:5],
        changed(0, 0x17),
        changed(1, 2),
        changed(3, 0x40, 1),  # a record that is too long
        changed(5, 2),
        changed(6, 1),  # a message that is too long
        changed(43, 33),  # a session
        changed(76, 0, 63),  # an odd number of bytes of ciphers
        changed(76, 0, 0),
        changed(140, 0),  # no compression method
        changed(142, 0, 0xAE),  # extensions that end before the message
        changed(142, 0, 0xB0),
        changed(146, 0, 19),  # a name that is longer than its extension
        in_records(Offer([1], [13, 13], [1]).hello()),
        in_records(Offer([1], [13]).hello()),  # no algorithms
        in_records(Offer([1], [43]).hello()),
    ],
)
def test_an_invalid_hello_is_not_read(data: bytes) -> None:
    assert client_hello(data) is None


def test_a_hello_of_the_ssl_module_is_read() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    client = context.wrap_bio(incoming, outgoing, server_hostname="knock.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = client_hello(outgoing.read())
    assert hello is not None
    assert hello.is_complete
    assert hello.server_name == "knock.example"
    assert hello.alpn == [b"h2", b"http/1.1"]
    assert ja4(hello).startswith("t13d")


@given(st.binary(max_size=300), st.integers(0, len(OPENSSL)), st.integers(0, 20))
def test_any_bytes_are_accepted(noise: bytes, at: int, gone: int) -> None:
    data = OPENSSL[:at] + noise + OPENSSL[at + gone :]
    for hello in (
        client_hello(data),
        datagram_hello(data),
        datagram_hello(OPENSSL_DTLS[:at] + noise),
    ):
        if hello is not None:
            assert len(ja4(hello)) == 36


def test_the_longest_hellos_are_read_fast() -> None:
    extensions = Offer([1], list(range(100, 4000))).hello()
    tiny = in_records(b"\x01\0\x3f\xff" + bytes(10_900), 1)
    began = time.process_time()
    for data in (in_records(extensions), b"\x16\x03\x01\0\x04\x01\0\x3f\xff" + tiny):
        if (hello := client_hello(data)) is not None:
            ja4(hello)
    assert time.process_time() - began < 0.5
