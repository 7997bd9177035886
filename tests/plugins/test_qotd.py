"""qotd (RFC 865): one quote of fewer than 512 characters, then the end of the stream."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import superd_qotd

from tests.conftest import Start
from tests.support.clients import (
    ask_unixgram,
    ask_unixpacket,
    connect_unix,
    receive_and_close,
    receive_to_end,
)
from tests.support.harness import Superd, ask_udp, superd, until
from tests.support.strangers import stranger

TOML = """
[service.qotd]
plugin = "qotd"
listen = [
    "tcp://127.0.0.1:0",
    "udp://127.0.0.1:0",
    "unix://{directory}/stream",
    "unixpacket://{directory}/packet",
    "unixgram://{directory}/datagram",
]
"""

PROVERBS = {f"{proverb}\r\n".encode() for proverb in superd_qotd.PROVERBS}

ASK: dict[str, Callable[[Superd], bytes]] = {
    "tcp": lambda served: receive_and_close(served.connect("qotd")),
    "udp": lambda served: ask_udp(served.address("qotd", "udp"), bytes(512)),
    "unix": lambda served: receive_and_close(connect_unix(served.directory / "stream")),
    "unixpacket": lambda served: b"".join(ask_unixpacket(served.directory / "packet")),
    "unixgram": lambda served: ask_unixgram(served.directory / "datagram", b""),
}


@pytest.mark.parametrize("transport", ASK)
def test_without_a_file_the_quotes_are_proverbs(served: Superd, transport: str) -> None:
    received = {ASK[transport](served) for _ in range(60)}
    assert received == PROVERBS  # that 60 draws miss one of five is practically impossible


def test_the_connection_ends_with_a_fin(served: Superd) -> None:
    with served.connect("qotd") as client:
        assert receive_to_end(client)[1] == "fin"


@pytest.mark.root
@pytest.mark.tool("ip")
def test_a_datagram_gets_a_quote_no_longer_than_itself(start_superd: Start) -> None:
    shortest, second = sorted(PROVERBS, key=len)[:2]
    received = set()
    with stranger(start_superd, "qotd") as (_, client):
        for _ in range(20):
            client.send(bytes(len(second) - 1))
            received.add(client.recv(1024))
    assert received == {shortest}


@pytest.mark.root
@pytest.mark.tool("ip")
def test_a_datagram_shorter_than_every_quote_gets_no_answer(start_superd: Start) -> None:
    with stranger(start_superd, "qotd") as (served, client):
        client.send(bytes(10))
        until(lambda: served.counts("qotd")["refused-amplification"] == 1, "the refusal")
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)


# Files of quotes

FILES = [
    pytest.param(b"one\n%\ntwo\n", [b"one", b"two"], id="a line of % between quotes"),
    pytest.param(b"%\none\n%\ntwo\n%\n", [b"one", b"two"], id="a line of % around quotes"),
    pytest.param(b"one\r\n%\r\ntwo\r\n", [b"one", b"two"], id="CRLF"),
    pytest.param(b"one\n%\n%\n\n%\ntwo", [b"one", b"two"], id="empty quotes"),
    pytest.param(b"50 % of it\n%done\n", [b"50 % of it\n%done"], id="a % that is text"),
    pytest.param(b"a\n  b\n\n\tc\n", [b"a\n  b\n\n\tc"], id="lines and indents"),
    pytest.param(b"only one, without a line end", [b"only one, without a line end"], id="one"),
    pytest.param(b"\n \n", [], id="nothing"),
]


@pytest.mark.parametrize(("text", "quotes"), FILES)
def test_files_are_read_like_fortune_does(text: bytes, quotes: list[bytes]) -> None:
    assert superd_qotd.read_quotes(text) == quotes


def test_quotes_have_network_line_ends_and_no_control_characters() -> None:
    assert superd_qotd.on_the_wire(b"a\nb\r\nc") == b"a\r\nb\r\nc\r\n"
    assert superd_qotd.on_the_wire(b"\x1b[2Jbe\x07ep\x00\x7f \xc3\xa9") == b"[2Jbeep \xc3\xa9\r\n"


def serve_quotes(start_superd: Start, directory: Path, text: bytes) -> Superd:
    file = directory / "quotes"
    file.write_bytes(text)
    return start_superd(
        f"""
        [service.qotd]
        plugin = "qotd"
        listen = "tcp://127.0.0.1:0"
        options = {{ quotes = "{file}" }}
        """
    )


def test_quotes_of_a_file_are_sent_except_too_long_ones(
    start_superd: Start, tmp_path: Path
) -> None:
    longest, too_long = b"x" * 509, b"y" * 510
    text = b"first\nsecond line\n%\n" + longest + b"\n%\n" + too_long + b"\n"
    served = serve_quotes(start_superd, tmp_path, text)
    received = {receive_and_close(served.connect("qotd")) for _ in range(60)}
    assert received == {b"first\r\nsecond line\r\n", longest + b"\r\n"}


@pytest.mark.parametrize("text", [b"", b"\n%\n%\n", b"z" * 600])
def test_a_file_without_a_valid_quote_is_an_error(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "quotes"
    file.write_bytes(text)
    done = superd("try", "qotd", f'quotes="{file}"')
    assert done.returncode != 0
    assert re.search(r"no quote of at most 509 bytes in .*/quotes", done.stderr)
    assert "Traceback" not in done.stderr
