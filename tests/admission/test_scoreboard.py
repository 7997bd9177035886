"""The scoreboard: rows, totals, and workers that write in other processes."""

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


def scoreboard_of(places: int) -> Scoreboard:
    return Scoreboard(Roster.of(SERVICES, places))


def test_all_counters_start_at_zero() -> None:
    scoreboard = scoreboard_of(3)
    for service in SERVICES:
        totals = scoreboard.totals(service)
        assert len(totals) == len(Count) + len(Refusal)
        assert not any(totals.values())


def test_the_totals_of_a_service_count_each_of_its_cells_once() -> None:
    scoreboard = scoreboard_of(4)
    columns = [*Count, *map(refusal_column, Refusal)]
    expected: dict[str, list[int]] = {service: [0] * len(columns) for service in SERVICES}
    value = 1
    for place in range(4):
        for service in SERVICES:
            for number, column in enumerate(columns):
                scoreboard.row(place, service)[column] += value
                expected[service][number] += value
                value *= 3
                value %= 1_000_003
    for service in SERVICES:
        assert list(scoreboard.totals(service).values()) == expected[service]


def test_totals_have_the_names_of_their_counters() -> None:
    scoreboard = scoreboard_of(2)
    scoreboard.row(0, "echo")[Count.BYTES_IN] = 5
    scoreboard.row(1, "echo")[refusal_column(Refusal.SOURCE_PORT)] = 7
    totals = scoreboard.totals("echo")
    assert totals["bytes-in"] == 5
    assert totals["refused-source-port"] == 7
    assert sum(totals.values()) == 12


def test_lost_lines_are_counted_for_all_services_together() -> None:
    scoreboard = scoreboard_of(2)
    for place in range(2):
        scoreboard.row(place, ALL)[LOST] += 3
    assert scoreboard.lost() == 6
    for service in SERVICES:
        assert not any(scoreboard.totals(service).values())
        assert not any(scoreboard.sums(service).durations)


def test_the_counts_of_an_ended_worker_stay_but_not_its_active_connections() -> None:
    scoreboard = scoreboard_of(2)
    for place in range(2):
        for service in SERVICES:
            scoreboard.row(place, service)[Count.ACTIVE] = 10
            scoreboard.row(place, service)[Count.ACCEPTED] = 100
    scoreboard.vacate(1)
    for service in SERVICES:
        totals = scoreboard.totals(service)
        assert (totals["active"], totals["accepted"]) == (10, 200)


def test_a_scoreboard_may_have_no_services_and_no_slots() -> None:
    assert Scoreboard(Roster.of((), 3)).vacate(2) == 0
    assert not any(scoreboard_of(0).totals("echo").values())


def test_a_service_that_is_added_later_keeps_the_counts_of_the_others() -> None:
    roster = Roster.of(SERVICES, 1)
    scoreboard = Scoreboard(roster)
    scoreboard.row(0, "qotd")[Count.ACCEPTED] = 5
    roster.add(["qotd", "finger", "echo"])
    scoreboard.row(3, "finger")[Count.ACCEPTED] = 7
    assert scoreboard.totals("qotd")["accepted"] == 5
    assert scoreboard.totals("finger")["accepted"] == 7


def test_services_can_be_added_until_the_scoreboard_is_full() -> None:
    roster = Roster.of([f"s{n}" for n in range(100)], 1)
    roster.add([f"t{n}" for n in range(299)])
    with pytest.raises(NoRoom, match="room for 399 services"):
        roster.add(["one", "more"])
    assert len(roster) == 400


def test_the_master_reads_the_counters_while_workers_count() -> None:
    workers, rounds = 4, 20_000
    scoreboard = scoreboard_of(workers)
    pids = []
    for place in range(workers):
        pid = os.fork()
        if pid == 0:
            row = scoreboard.row(place, "daytime")
            for _ in range(rounds):
                row[Count.ACCEPTED] += 1
                row[Count.BYTES_OUT] += 26
            os._exit(0)
        pids.append(pid)
    before = 0
    while os.waitpid(pids[0], os.WNOHANG)[0] == 0:
        now = scoreboard.totals("daytime")["accepted"]
        assert before <= now, "a total decreased while workers counted"
        before = now
    for pid in pids[1:]:
        os.waitpid(pid, 0)
    totals = scoreboard.totals("daytime")
    assert (totals["accepted"], totals["bytes-out"]) == (workers * rounds, workers * rounds * 26)
    assert not any(scoreboard.totals("echo").values())
