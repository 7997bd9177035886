"""daytime (RFC 867): one line, then the end of the stream."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
import superd_daytime

from tests.conftest import Start
from tests.support.clients import (
    ask_unixgram,
    ask_unixpacket,
    connect_unix,
    receive_and_close,
    receive_to_end,
)
from tests.support.harness import Superd, ask_udp, until
from tests.support.strangers import stranger

TOML = """
[service.daytime]
plugin = "daytime"
listen = [
    "tcp://127.0.0.1:0",
    "udp://127.0.0.1:0",
    "unix://{directory}/stream",
    "unixpacket://{directory}/packet",
    "unixgram://{directory}/datagram",
]

[service.generous]
plugin = "daytime"
listen = "udp://127.0.0.1:0"
amplify = true
"""

FORM = rb"(Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z]{2} [ 123]\d \d\d:\d\d:\d\d \d{4}\r\n"

ASK: dict[str, Callable[[Superd], bytes]] = {
    "tcp": lambda served: receive_and_close(served.connect("daytime")),
    "udp": lambda served: ask_udp(served.address("daytime", "udp"), bytes(26)),
    "udp, amplifying": lambda served: ask_udp(served.address("generous", "udp"), b""),
    "unix": lambda served: receive_and_close(connect_unix(served.directory / "stream")),
    "unixpacket": lambda served: b"".join(ask_unixpacket(served.directory / "packet")),
    "unixgram": lambda served: ask_unixgram(served.directory / "datagram", b""),
}


@pytest.mark.parametrize("transport", ASK)
def test_the_line_has_the_format_and_the_time(served: Superd, transport: str) -> None:
    before = int(time.time())
    line = ASK[transport](served)
    after = int(time.time())
    assert re.fullmatch(FORM, line)
    shown = time.mktime(time.strptime(line.decode(), "%a %b %d %H:%M:%S %Y\r\n"))
    assert before <= shown <= after


def test_the_connection_ends_with_a_fin(served: Superd) -> None:
    with served.connect("daytime") as client:
        assert receive_to_end(client)[1] == "fin"


@pytest.mark.root
@pytest.mark.tool("ip")
def test_a_datagram_shorter_than_the_answer_gets_no_answer(start_superd: Start) -> None:
    with stranger(start_superd, "daytime") as (served, client):
        client.send(bytes(25))
        until(lambda: served.counts("daytime")["refused-amplification"] == 1, "the refusal")
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)


def test_a_day_of_one_digit_is_padded() -> None:
    first_of_march = time.mktime((2026, 3, 1, 4, 5, 6, 0, 0, -1))
    assert superd_daytime.line(int(first_of_march)) == b"Sun Mar  1 04:05:06 2026\r\n"
