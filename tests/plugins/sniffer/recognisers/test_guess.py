"""Guesses for real first bytes, for their prefixes, and for data of no protocol."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from superd_sniffer import recognisers
from superd_sniffer.recognisers.guess import DATAGRAMS as KNOWN_DATAGRAMS
from superd_sniffer.recognisers.guess import STREAMS as KNOWN_STREAMS
from superd_sniffer.recognisers.guess import Guess, guess

from tests.plugins.sniffer.samples import (
    DATAGRAMS,
    STREAMS,
    UNKNOWN_DATAGRAMS,
    UNKNOWN_STREAMS,
    Sample,
)

ALL = [(sample, False) for sample in STREAMS] + [(sample, True) for sample in DATAGRAMS]
EACH = pytest.mark.parametrize(
    ("sample", "datagram"), ALL, ids=[f"{one.protocol}-{n}" for n, (one, _) in enumerate(ALL)]
)
NMAP_PROBES = Path("/usr/share/nmap/nmap-service-probes")

# pairs of a protocol and another that is a prefix of it
HAS_PREFIX = {("proxy", "probe"), ("http", "probe")}


def check_bounds(found: Guess | None) -> None:
    if found is not None:
        assert re.fullmatch("[a-z][a-z0-9]*", found.protocol)
        assert len(found.details) <= 8
        for key, value in found.details.items():
            assert re.fullmatch("[a-z][a-z0-9-]*", key)
            assert 0 < len(value) <= 256
            value.encode()  # no lone surrogates


@EACH
def test_real_first_bytes_are_recognised(sample: Sample, datagram: bool) -> None:
    found = guess(sample.data, datagram=datagram)
    assert found == Guess(sample.protocol, sample.details)
    check_bounds(found)


@pytest.mark.parametrize("data", UNKNOWN_STREAMS, ids=repr)
def test_unknown_streams_are_not_recognised(data: bytes) -> None:
    assert guess(data, datagram=False) is None


@pytest.mark.parametrize("data", UNKNOWN_DATAGRAMS, ids=repr)
def test_unknown_datagrams_are_not_recognised(data: bytes) -> None:
    assert guess(data, datagram=True) is None


def test_every_protocol_has_a_sample() -> None:
    assert {name for name, _ in KNOWN_STREAMS} == {one.protocol for one in STREAMS}
    assert {name for name, _ in KNOWN_DATAGRAMS} == {one.protocol for one in DATAGRAMS}


@pytest.mark.parametrize(
    "sample", STREAMS, ids=[f"{s.protocol}-{n}" for n, s in enumerate(STREAMS)]
)
def test_a_prefix_is_the_same_protocol_or_unknown(sample: Sample) -> None:
    first = None
    for end in range(len(sample.data) + 1):
        found = guess(sample.data[:end], datagram=False)
        check_bounds(found)
        if found is not None and (sample.protocol, found.protocol) not in HAS_PREFIX:
            assert found.protocol == sample.protocol, sample.data[:end]
            first = first or end
        else:
            assert first is None, sample.data[:end]
    assert first


@EACH
def test_more_bytes_do_not_change_the_guess_for_a_stream(sample: Sample, datagram: bool) -> None:
    whole_only = {"modbus", "zookeeper", "lpd", "probe", "openvpn", "amqp", "socks5", "minecraft"}
    if not datagram and sample.protocol not in whole_only:
        found = guess(sample.data + b"\xc3\xb6" * 300, datagram=False)
        assert found is not None
        assert found.protocol == sample.protocol


def nmap_probes() -> Iterator[tuple[str, str, bytes]]:
    """Yield transport, name and data of nmap's probes, from its table."""
    for line in NMAP_PROBES.read_text("latin-1").splitlines():
        if match := re.match(r"Probe (TCP|UDP) (\S+) q(.)(.*?)\3", line):
            text = match[4].encode("latin-1").decode("unicode_escape")
            yield match[1], match[2], text.encode("latin-1")


@pytest.mark.skipif(not NMAP_PROBES.exists(), reason="needs nmap's table of probes")
def test_probes_of_nmap_are_recognised() -> None:
    found = {}
    for transport, name, data in nmap_probes():
        one = guess(data, datagram=transport == "UDP")
        check_bounds(one)
        found[transport, name] = one.protocol if one else ""
    expected = {
        "GenericLines": "probe", "GetRequest": "http", "RTSPRequest": "rtsp", "RPCCheck": "sunrpc",
        "DNSVersionBindReqTCP": "dns", "SSLSessionReq": "tls", "TLSSessionReq": "tls",
        "SMBProgNeg": "smb", "X11Probe": "x11", "LPDString": "lpd", "LDAPSearchReq": "ldap",
        "SIPOptions": "sip", "TerminalServer": "rdp", "JavaRMI": "rmi", "oracle-tns": "oracle",
        "Socks5": "socks5", "Socks4": "socks4", "ms-sql-s": "mssql", "Kerberos": "kerberos",
    }  # fmt: skip
    assert {name: found["TCP", name] for name in expected} == expected
    assert sum(bool(one) for one in found.values()) > len(found) / 3


def test_it_reads_its_argument_and_nothing_else() -> None:
    folder = Path(recognisers.__file__).parent
    waiting, seen = ["guess.py", "tls.py", "../pcap.py"], set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            names = imported(folder / name)
            waiting += [f"{one}.py" for one in names if (folder / f"{one}.py").exists()]
            assert not names & {"superd", "asyncio", "socket", "os", "pathlib", "subprocess", "re"}
    assert len(seen) > 10


def imported(file: Path) -> set[str]:
    """Return the modules and names that a module imports, without the packages they are in."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module.split(".")[0], node.module.split(".")[-1]}
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found


SECRETS = [
    b"GET / HTTP/1.1\r\nAuthorization: Basic c2VjcmV0\r\nCookie: c2VjcmV0\r\n\r\n",
    b"*2\r\n$4\r\nAUTH\r\n$8\r\nc2VjcmV0\r\n",
    b"*5\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n$1\r\nu\r\n$8\r\nc2VjcmV0\r\n",
    b"a1 LOGIN user c2VjcmV0\r\n",
    b"APOP user c2VjcmV0\r\n",
    b"\x05\x01\x02\x01\x01u\x08c2VjcmV0\x05\x01\0\x01\x01\x02\x03\x04\0\x50",
    bytes.fromhex("3012 020101 60 0d 020103 0400 8008") + b"c2VjcmV0",
]


@pytest.mark.parametrize("data", SECRETS, ids=repr)
def test_no_password_is_returned(data: bytes) -> None:
    found = guess(data, datagram=False)
    assert found is not None
    assert "c2VjcmV0" not in repr(found)


def test_values_are_raw_and_bounded() -> None:
    nasty = "\x1b[2J\u202e" + "\ufffd" * 500
    data = b"GET /\xff\r HTTP/1.1\r\nHost: " + nasty.encode() + b"\r\n\r\n"
    found = guess(data, datagram=False)
    assert found is not None
    assert found.details["target"] == "/\\xff\r"
    assert found.details["host"].startswith("\x1b[2J\u202e\ufffd")
    check_bounds(found)


LONG = [
    b"GET /" + b"a" * 65530, b"GET " + b"/ " * 32000, b"A" * 65536, b" " * 65536, b"\n" * 65536,
    b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 16000, b"GET / HTTP/1.1\r\n" + b":" * 65000,
    b"\xff\xfb\x01" * 21845, b"*1\r\n$65000\r\n" + b"a" * 65000,
    b"*999999\r\n" + b"$1\r\na\r\n" * 9000,
    b"\0\0\xff\xf0\xffSMB\x72" + bytes(28) + b"\x02" * 65000,
    b"\x30\x84\0\0\xff\xf0" + b"\x02\x01\x01" * 21000, b"<?xml" + b" to='" * 13000,
    b"0041git-upload-pack " + b"\0host=" * 10000,
    b"\x16\x03\x01\x00\x04\x01\0\x3f\xff" + b"\x16\x03\x01\x00\x01\0" * 10900,
    b"\x05\xff" + bytes(range(255)) + bytes(65000), b"PROXY TCP4 " + b"1 " * 32000,
]  # fmt: skip


@pytest.mark.parametrize("data", LONG, ids=lambda data: repr(data[:12]))
@pytest.mark.parametrize("datagram", [False, True])
def test_64_kib_are_read_fast(data: bytes, datagram: bool) -> None:
    began = time.process_time()
    check_bounds(guess(data[:65536], datagram=datagram))
    assert time.process_time() - began < 0.1


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_accepted(data: bytes, datagram: bool) -> None:
    check_bounds(guess(data, datagram=datagram))


CHANGES = st.lists(
    st.tuples(st.integers(0, 1500), st.integers(0, 4), st.binary(max_size=4)), max_size=6
)


@given(st.sampled_from(ALL), CHANGES, st.integers(0, 1500), st.booleans())
def test_any_changed_sample_is_accepted(
    sample: tuple[Sample, bool],
    changes: list[tuple[int, int, bytes]],
    end: int,
    other: bool,
) -> None:
    data = sample[0].data
    for at, gone, new in changes:
        at %= len(data) + 1
        data = data[:at] + new + data[at + gone :]
    check_bounds(guess(data[:end], datagram=sample[1] ^ other))


@EACH
def test_samples_with_any_byte_changed_are_accepted(sample: Sample, datagram: bool) -> None:
    for at in range(min(len(sample.data), 100)):
        for new in (0, 1, 0x7F, 0x80, 0xFF):
            data = sample.data[:at] + bytes([new]) + sample.data[at + 1 :]
            check_bounds(guess(data, datagram=datagram))
            check_bounds(guess(data[: at + 1], datagram=datagram))
