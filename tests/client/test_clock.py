"""`superd clock`: the difference to another clock, also past 2036, and wrong answers."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from superd.client.clock import SECONDS_1900_TO_1970, Reading
from tests.client.peers import peer
from tests.support.harness import EVENT_TIMEOUT, Superd, superd
from tests.support.ports import free_port

TOML = """
[service.time]
plugin = "time"
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0", "udp://[::1]:0"]

[service.daytime]
plugin = "daytime"
listen = "tcp://127.0.0.1:0"
"""


def offset(printed: str) -> float:
    """Return the seconds by which the printed sentence puts the other clock ahead."""
    match = re.fullmatch(
        r"\S+ is ([\d.]+) s (ahead of|behind) this clock \(round trip [\d.]+ ms\);"
        r" the protocol has whole seconds, so the error is up to 0\.5 s\n",
        printed,
    )
    assert match, printed
    return float(match[1]) if match[2] == "ahead of" else -float(match[1])


@contextlib.contextmanager
def answering(answer: Callable[[int], bytes | None]) -> Iterator[str]:
    """Answer the first, second, ... datagram with the given answers; yield the address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            number = 0
            while True:
                _, client = server.recvfrom(100)
                if client == own:
                    return
                data = answer(number)
                number += 1
                if data is not None:
                    server.sendto(data, client)

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stopper:
            stopper.bind(("127.0.0.1", 0))
            own = stopper.getsockname()
            thread = threading.Thread(target=serve)
            thread.start()
            try:
                yield f"127.0.0.1:{server.getsockname()[1]}"
            finally:
                stopper.sendto(b"", server.getsockname())
                thread.join(EVENT_TIMEOUT)


def number_at(seconds: float) -> bytes:
    return ((int(time.time() + seconds) + SECONDS_1900_TO_1970) % 2**32).to_bytes(4, "big")


def test_the_same_clock(served: Superd) -> None:
    host, port = served.address("time", "udp")
    for arguments in ([f"{host}:{port}"], ["--tcp", f"{host}:{served.address('time')[1]}"]):
        done = superd("clock", *arguments)
        assert abs(offset(done.stdout)) <= 0.6, done.stdout
        assert (done.returncode, done.stderr) == (0, "")


def test_by_ipv6(served: Superd) -> None:
    host, port = served.addresses("time", "udp")[1]
    assert abs(offset(superd("clock", f"[{host}]:{port}").stdout)) <= 0.6


@pytest.mark.parametrize("seconds", [-86_400, 2**31 - 1000])
def test_another_clock(seconds: int) -> None:
    with answering(lambda _: number_at(seconds)) as at:
        printed = superd("clock", at).stdout
    assert abs(offset(printed) - seconds) <= 0.6


def test_a_lost_request_is_repeated() -> None:
    with answering(lambda number: number_at(60) if number else None) as at:
        assert abs(offset(superd("clock", "--timeout", "800ms", at).stdout) - 60) <= 0.6


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("2036-02-07 06:28:10", 0),  # the other side is past the wrap, this one is not
        ("2036-02-07 06:28:20", 2**32 - 1),
        ("2036-02-08 06:28:16", 86_400),
        ("2104-01-01 00:00:00", (4_228_588_800 + SECONDS_1900_TO_1970) % 2**32),
    ],
)
def test_the_time_nearest_to_this_clock_is_chosen(here: str, there: int) -> None:
    now = time.mktime(time.strptime(here, "%Y-%m-%d %H:%M:%S")) - time.timezone
    reading = Reading(there, now + 0.5, 0.0, "")
    expected = {"2036-02-07 06:28:10": 6, "2036-02-07 06:28:20": -5}.get(here, 0)
    assert reading.offset == expected


def test_half_of_the_round_trip_is_subtracted() -> None:
    # asked at 99.6, answered at 100.4: the other clock was read at about 100.0
    now = 1_700_000_000
    number = now + SECONDS_1900_TO_1970
    assert Reading(number, now + 0.0, 0.8, "").offset == 0.5
    assert Reading(number, now - 0.25, 0.8, "").offset == 0.75


@pytest.mark.parametrize("answer", [b"", b"12345"])
def test_an_answer_of_the_wrong_size_is_an_error(answer: bytes) -> None:
    with answering(lambda _: answer) as at:
        done = superd("clock", at)
    assert done.returncode == 1
    assert done.stderr == (
        f"superd: udp://{at} does not speak the time protocol:"
        f" it answered with {len(answer)} bytes instead of 4\n"
    )


def test_the_answer_of_another_service_is_an_error(served: Superd) -> None:
    host, port = served.address("daytime")
    printed = superd("clock", "--tcp", f"{host}:{port}").stderr
    assert "does not speak the time protocol" in printed


def test_a_close_without_an_answer_is_an_error() -> None:
    with peer(lambda client: None) as (at, _):
        done = superd("clock", "--tcp", at)
    assert done.returncode == 1
    assert done.stderr == (f"superd: tcp://{at} closed the connection without an answer\n")


def test_no_answer_is_an_error() -> None:
    with answering(lambda _: None) as at:
        done = superd("clock", "--timeout", "200ms", at)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"superd: no answer from udp://{at} in 0.2 s\n"


def test_a_refusal_is_an_error() -> None:
    at = f"127.0.0.1:{free_port()}"
    done = superd("clock", at)
    assert done.returncode == 1
    assert done.stderr == f"superd: cannot connect to udp://{at}: Connection refused\n"


def test_the_port_is_optional() -> None:
    for host, shown in (("127.0.0.9", "127.0.0.9:37"), ("::1", "[::1]:37")):
        done = superd("clock", host)
        assert f"udp://{shown}" in done.stderr or f"{host} is" in done.stdout
    assert superd("clock", "unix:///run/socket").returncode == 2
