"""time (RFC 868): four bytes, seconds since 1900, most significant byte first."""

from __future__ import annotations

import calendar
import time
from collections.abc import Callable

import pytest
import superd_time

from tests.conftest import Start
from tests.support.clients import ask_unixgram, ask_unixpacket, connect_unix, receive_and_close
from tests.support.harness import Superd, ask_udp, until
from tests.support.strangers import stranger

TOML = """
[service.time]
plugin = "time"
listen = [
    "tcp://127.0.0.1:0",
    "udp://127.0.0.1:0",
    "unix://{directory}/stream",
    "unixpacket://{directory}/packet",
    "unixgram://{directory}/datagram",
]

[service.generous]
plugin = "time"
listen = "udp://127.0.0.1:0"
amplify = true
"""

ASK: dict[str, Callable[[Superd], bytes]] = {
    "tcp": lambda served: receive_and_close(served.connect("time")),
    "udp": lambda served: ask_udp(served.address("time", "udp"), bytes(4)),
    "udp, empty": lambda served: ask_udp(served.address("generous", "udp"), b""),
    "unix": lambda served: receive_and_close(connect_unix(served.directory / "stream")),
    "unixpacket": lambda served: b"".join(ask_unixpacket(served.directory / "packet")),
    "unixgram": lambda served: ask_unixgram(served.directory / "datagram", b""),
}


@pytest.mark.parametrize("transport", ASK)
def test_the_number_counts_seconds_since_1900(served: Superd, transport: str) -> None:
    before = int(time.time())
    answer = ASK[transport](served)
    after = int(time.time())
    assert len(answer) == 4
    assert before <= int.from_bytes(answer, "big") - 2_208_988_800 <= after


@pytest.mark.root
@pytest.mark.tool("ip")
def test_a_datagram_of_three_bytes_gets_no_answer(start_superd: Start) -> None:
    with stranger(start_superd, "time") as (served, client):
        client.send(bytes(3))
        until(lambda: served.counts("time")["refused-amplification"] == 1, "the refusal")
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)


@pytest.mark.parametrize(
    ("when", "number"),
    [
        ("1970-01-01 00:00:00", 2_208_988_800),  # this and the next three: examples of the RFC
        ("1976-01-01 00:00:00", 2_398_291_200),
        ("1980-01-01 00:00:00", 2_524_521_600),
        ("1983-05-01 00:00:00", 2_629_584_000),
        ("2036-02-07 06:28:15", 2**32 - 1),
        ("2036-02-07 06:28:16", 0),
        ("2036-02-08 06:28:16", 86_400),
    ],
)
def test_the_number_wraps_in_february_2036(when: str, number: int) -> None:
    now = calendar.timegm(time.strptime(when, "%Y-%m-%d %H:%M:%S"))
    assert superd_time.on_the_wire(now + 0.9) == number.to_bytes(4, "big")
