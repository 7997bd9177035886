"""The lingering close: when a socket is closed, and when its slot in the limits is released."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from superd.admission.gate import NO_SOURCE, Ticket
from superd.worker.runtime.linger import LINGER_TIMEOUT, Lingering

Pair = tuple[socket.socket, socket.socket]


class Bench:
    """Lingering sockets on a loop, and the tickets of the slots that were released."""

    def __init__(self) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self.changes = 0
        self.released: list[Ticket] = []
        self.lingering = Lingering(self.loop, self.note_change)

    def note_change(self) -> None:
        self.changes += 1

    def service(self, *, has_limits: bool) -> Any:
        gate = SimpleNamespace(scopes=["daemon"] if has_limits else [])
        return SimpleNamespace(gate=gate, release=self.released.append)

    def turn(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.001)

        self.loop.run_until_complete(asyncio.wait_for(wait(), seconds))

    def close(self) -> None:
        self.lingering.epoll.close()
        self.loop.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, client = socket.socketpair()
    with ours, client:
        yield ours, client


@pytest.mark.parametrize("has_limits", [False, True])
def test_a_socket_is_closed_and_its_slot_released_once_its_client_has_closed(
    bench: Bench, pair: Pair, has_limits: bool
) -> None:
    ours, client = pair
    client.send(b"unread input")
    bench.lingering.finish(ours, bench.service(has_limits=has_limits), NO_SOURCE)
    assert client.recv(1) == b""
    bench.turn(lambda: bench.loop.time() > 0)
    assert (len(bench.lingering), bench.released) == (1, [])
    client.close()
    bench.turn(lambda: not bench.lingering)
    assert bench.released == [NO_SOURCE]
    assert bench.changes
    assert ours.fileno() < 0


def test_a_client_that_does_not_close_is_closed_after_the_time_out(
    bench: Bench, pair: Pair
) -> None:
    ours, _ = pair
    began = bench.loop.time()
    bench.lingering.finish(ours, bench.service(has_limits=True), NO_SOURCE)
    bench.turn(lambda: not bench.lingering)
    assert bench.loop.time() - began >= LINGER_TIMEOUT
    assert bench.released == [NO_SOURCE]


def test_a_refused_client_has_no_slot_to_release(bench: Bench, pair: Pair) -> None:
    ours, client = pair
    bench.lingering.finish(ours)
    client.close()
    bench.turn(lambda: not bench.lingering)
    assert bench.released == []


def test_a_socket_that_cannot_be_shut_down_is_closed_at_once(bench: Bench, pair: Pair) -> None:
    ours, _ = pair
    ours.close()
    bench.lingering.finish(ours, bench.service(has_limits=True), NO_SOURCE)
    assert (len(bench.lingering), bench.released) == (0, [NO_SOURCE])


def test_close_half_closes_the_older_half(bench: Bench) -> None:
    pairs = [socket.socketpair() for _ in range(4)]
    service = bench.service(has_limits=True)
    for number, (ours, _) in enumerate(pairs):
        bench.lingering.finish(ours, service, (number,))
    bench.lingering.close_half()
    assert bench.released == [(0,), (1,)]
    assert [ours.fileno() < 0 for ours, _ in pairs] == [True, True, False, False]
    for ours, client in pairs:
        ours.close()
        client.close()
