"""The tarpit: how many connections it holds, and for how long."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

import pytest

from superd.worker.runtime.tarpit import DESCRIPTOR_SHARE, HOLD_TIME, MAX_HELD, Tarpit


class Loop:
    """A loop whose time a test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.later: list[Callable[[], None]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, _: float, callback: Callable[[], None]) -> None:
        self.later.append(callback)

    def run_at(self, now: float) -> None:
        """Run what is scheduled, at a time."""
        self.now = now
        later, self.later = self.later, []
        for callback in later:
            callback()


class Connection:
    """A socket that notes whether it is closed."""

    is_closed = False

    def setsockopt(self, *_: int) -> None:
        raise OSError

    def close(self) -> None:
        self.is_closed = True


class Bench:
    """A tarpit with doubles around it."""

    def __init__(self) -> None:
        self.loop = Loop()
        loop: Any = self.loop
        self.tarpit = Tarpit(loop)

    def hold(self, number: int) -> list[Connection]:
        connections = [Connection() for _ in range(number)]
        for connection in connections:
            sock: Any = connection
            self.tarpit.hold(sock)
        return connections


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_connection_is_held_for_its_time(bench: Bench) -> None:
    (first,) = bench.hold(1)
    bench.loop.run_at(HOLD_TIME / 2)
    (second,) = bench.hold(1)
    bench.loop.run_at(HOLD_TIME - 1)
    assert not first.is_closed
    bench.loop.run_at(HOLD_TIME)
    assert first.is_closed
    assert not second.is_closed
    assert len(bench.tarpit) == len(bench.loop.later) == 1


def test_an_empty_tarpit_sets_no_timer(bench: Bench) -> None:
    bench.hold(3)
    bench.loop.run_at(HOLD_TIME)
    assert (len(bench.tarpit), bench.loop.later) == (0, [])


def test_a_full_tarpit_closes_its_oldest_connections(bench: Bench) -> None:
    limit = min(MAX_HELD, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // DESCRIPTOR_SHARE)
    connections = bench.hold(limit + 2)
    assert [connection.is_closed for connection in connections] == [True] * 2 + [False] * limit
    assert len(bench.tarpit) == limit


def test_close_all_closes_every_connection(bench: Bench) -> None:
    connections = bench.hold(3)
    bench.tarpit.close_all()
    assert all(connection.is_closed for connection in connections)
    assert len(bench.tarpit) == 0
