"""Counters that all workers share: rows, sums, and writers in other processes."""

from __future__ import annotations

import os

import pytest

from superd.admission.refusals import Refusal
from superd.admission.scoreboard import (
    ALL,
    LOST,
    Count,
    NoRoom,
    Roster,
    Scoreboard,
    refusal_column,
)

SERVICES = ("echo", "daytime", "qotd")


def board_of(places: int) -> Scoreboard:
    return Scoreboard(Roster.of(SERVICES, places))


def test_all_counters_start_at_zero() -> None:
    board = board_of(3)
    for service in SERVICES:
        totals = board.totals(service)
        assert len(totals) == len(Count) + len(Refusal)
        assert not any(totals.values())


def test_each_cell_is_counted_once_and_for_its_own_service() -> None:
    board = board_of(4)
    columns = [*Count, *map(refusal_column, Refusal)]
    expected: dict[str, list[int]] = {service: [0] * len(columns) for service in SERVICES}
    value = 1
    for place in range(4):
        for service in SERVICES:
            for number, column in enumerate(columns):
                board.row(place, service)[column] += value
                expected[service][number] += value
                value *= 3
                value %= 1_000_003
    for service in SERVICES:
        assert list(board.totals(service).values()) == expected[service]


def test_totals_are_named_after_what_is_counted() -> None:
    board = board_of(2)
    board.row(0, "echo")[Count.BYTES_IN] = 5
    board.row(1, "echo")[refusal_column(Refusal.SOURCE_PORT)] = 7
    totals = board.totals("echo")
    assert totals["bytes-in"] == 5
    assert totals["refused-source-port"] == 7
    assert sum(totals.values()) == 12


def test_lines_that_were_lost_are_counted_once_for_all_services() -> None:
    board = board_of(2)
    for place in range(2):
        board.row(place, ALL)[LOST] += 3
    assert board.lost() == 6
    for service in SERVICES:
        assert not any(board.totals(service).values())
        assert not any(board.sums(service).durations)


def test_a_worker_that_has_gone_leaves_its_counts_but_no_connections() -> None:
    board = board_of(2)
    for place in range(2):
        for service in SERVICES:
            board.row(place, service)[Count.ACTIVE] = 10
            board.row(place, service)[Count.ACCEPTED] = 100
    board.vacate(1)
    for service in SERVICES:
        totals = board.totals(service)
        assert (totals["active"], totals["accepted"]) == (10, 200)


def test_a_board_without_services_or_places_is_none_the_worse() -> None:
    assert Scoreboard(Roster.of((), 3)).vacate(2) == 0
    assert not any(board_of(0).totals("echo").values())


def test_a_service_that_comes_later_keeps_the_counts_of_the_others() -> None:
    roster = Roster.of(SERVICES, 1)
    board = Scoreboard(roster)
    board.row(0, "qotd")[Count.ACCEPTED] = 5
    roster.add(["qotd", "finger", "echo"])
    board.row(3, "finger")[Count.ACCEPTED] = 7
    assert board.totals("qotd")["accepted"] == 5
    assert board.totals("finger")["accepted"] == 7


def test_there_is_room_for_many_more_services_and_an_end_to_it() -> None:
    roster = Roster.of([f"s{n}" for n in range(100)], 1)
    roster.add([f"t{n}" for n in range(299)])
    with pytest.raises(NoRoom, match="room for 399 services"):
        roster.add(["one", "more"])
    assert len(roster) == 400


def test_workers_count_in_memory_that_the_master_reads() -> None:
    workers, rounds = 4, 20_000
    board = board_of(workers)
    pids = []
    for place in range(workers):
        pid = os.fork()
        if pid == 0:
            row = board.row(place, "daytime")
            for _ in range(rounds):
                row[Count.ACCEPTED] += 1
                row[Count.BYTES_OUT] += 26
            os._exit(0)
        pids.append(pid)
    before = 0
    while os.waitpid(pids[0], os.WNOHANG)[0] == 0:
        now = board.totals("daytime")["accepted"]
        assert before <= now, "a sum went back while it was read"
        before = now
    for pid in pids[1:]:
        os.waitpid(pid, 0)
    totals = board.totals("daytime")
    assert (totals["accepted"], totals["bytes-out"]) == (workers * rounds, workers * rounds * 26)
    assert not any(board.totals("echo").values())
