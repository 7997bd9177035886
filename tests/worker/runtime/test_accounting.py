"""Accounting: each connection has its own number, and is counted, recorded and released once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from superd.admission.gate import NO_SOURCE, Ticket
from superd.admission.scoreboard import Count, duration_column
from superd.net.addresses import Transport
from superd.observe.connections import ConnectionLog, End, ServiceRecords, parsed
from superd.worker.runtime.accounting import AccountedConnection, Accounting

SERIAL = 0x2A
CLIENT = ("127.0.0.1", 5)
LOCAL = "tcp://127.0.0.1:7"


class Connection(AccountedConnection):
    """A connection that is nothing but accounted for."""

    def __init__(self, bench: Bench, passed: tuple[int, int] | None = (3, 4)) -> None:
        self.bench = bench
        self.worker_service = bench.service
        self.transport_kind, self.sockaddr, self.local_text = Transport.TCP, CLIENT, LOCAL
        self.ticket: Ticket = NO_SOURCE
        self.end, self.target = None, None
        self._ends = self.outcome = ""
        self.known = passed

    @property
    def id(self) -> str:
        return self.bench.accounting.id_of(self.number)

    @property
    def is_lost(self) -> bool:
        return False

    def expire(self, end: End) -> None:
        self.end = end

    @property
    def byte_counts(self) -> tuple[int, int] | None:
        return self.known


class Bench:
    """The accounting of a worker, with one service of doubles."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[dict[str, Any]] = []
        self.released: list[Ticket] = []
        self.resumed = 0
        self.log = ConnectionLog(1, self.take_events, lambda *_: None, lambda _: None)
        self.counts = [0] * (duration_column(1e9) + 1)
        service: Any = SimpleNamespace(
            name="echo",
            counts=self.counts,
            plugin=SimpleNamespace(runs_programs=False),
            gate=SimpleNamespace(leave=self.released.append),
            records=ServiceRecords(self.log, "echo", ("accepted", "closed")),
            waiting={"an acceptor"},
            resume=self.resume,
        )
        self.service = service
        self.connections: dict[int, AccountedConnection] = {}
        self.accounting = Accounting(SERIAL, lambda: self.now, self.connections)

    def take_events(self, batch: bytes) -> bool:
        self.events += [parsed(line) for line in batch.splitlines()]
        return True

    def resume(self) -> None:
        self.resumed += 1

    def recorded(self) -> list[dict[str, Any]]:
        self.log.flush()
        return self.events


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_connection_is_accounted_for_once(bench: Bench) -> None:
    connection = Connection(bench)
    bench.accounting.open(connection)
    assert bench.connections == {1: connection}
    bench.now = 2.0
    for _ in range(2):
        bench.accounting.close(connection)
    assert bench.connections == {}
    assert bench.released == [NO_SOURCE]
    assert bench.resumed == 1
    assert (bench.counts[Count.BYTES_IN], bench.counts[Count.BYTES_OUT]) == (3, 4)
    assert bench.counts[duration_column(2.0)] == 1
    accepted, closed = bench.recorded()
    assert accepted["conn"] == closed["conn"] == connection.id == "2a-1"
    assert (accepted["event"], accepted["peer"]) == ("accepted", "127.0.0.1:5")
    assert (closed["in"], closed["out"], closed["end"]) == (3, 4, "server")


def test_a_slot_that_lingers_is_not_released_by_its_connection(bench: Bench) -> None:
    connection = Connection(bench)
    bench.accounting.open(connection)
    connection.release_slots()
    bench.accounting.close(connection)
    assert bench.released == [NO_SOURCE]


def test_unknown_bytes_are_neither_counted_nor_recorded(bench: Bench) -> None:
    connection = Connection(bench, passed=None)
    bench.accounting.open(connection)
    connection.expire(End.RESET)
    bench.accounting.close(connection)
    assert (bench.counts[Count.BYTES_IN], bench.counts[Count.BYTES_OUT]) == (0, 0)
    assert "in" not in bench.recorded()[-1]
    assert bench.events[-1]["end"] == "reset"


def test_an_answer_without_a_session_has_a_number_of_its_own(bench: Bench) -> None:
    first, second = Connection(bench), Connection(bench)
    bench.accounting.open(first)
    name = bench.accounting.answered(bench.service, Transport.TCP, CLIENT, LOCAL, 9, End.SERVER)
    bench.accounting.open(second)
    assert [first.id, name, second.id] == ["2a-1", "2a-2", "2a-3"]
    assert bench.counts[Count.BYTES_OUT] == 9
    answered = [event for event in bench.recorded() if event["conn"] == name]
    assert [event["event"] for event in answered] == ["accepted", "closed"]
    assert answered[-1]["out"] == 9
