"""Which target is next, and which is left out: pure policies, without a network."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from superd_forward.targets import POLICIES, Target, Targets

from superd.net.addresses import Address, Transport
from superd.net.destinations import parse_destination
from superd.plugin import Client

SOMEBODY = Address(Transport.TCP, "192.0.2.1", 5)
LATER = 100.0  # seconds: everybody is tried again


@dataclass
class Visitor:
    """A client, as far as a policy looks at it."""

    peer: Address = SOMEBODY


class Log:
    """What superd would log."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, level: str, text: str) -> None:
        self.lines.append((level, text))


def target(
    port: int,
    weight: int = 1,
    *,
    fail_after: int = 1,
    retry_after: float = 10,
    log: Log | None = None,
) -> Target:
    return Target(
        parse_destination(f"tcp://192.0.2.1:{port}"),
        weight,
        datagrams=False,
        fail_after=fail_after,
        retry_after=retry_after,
        is_ours=lambda transport, port: False,
        log=log or Log(),
    )


def targets(policy: str, *weights: int) -> Targets:
    made = [target(port, weight) for port, weight in enumerate(weights, 1)]
    return Targets(made, POLICIES[policy]())


def order(several: Targets, client: Visitor | None = None) -> Sequence[Target]:
    return several.order(cast(Client, client or Visitor()))


def ports(several: Sequence[Target]) -> list[int]:
    return [one.destination.port for one in several]


def asked(several: Targets, number: int, client: Visitor | None = None) -> list[int]:
    """Return who comes first for so many clients, one after the other."""
    return [ports(order(several, client))[0] for _ in range(number)]


WEIGHTS = st.lists(st.integers(1, 20), min_size=2, max_size=6)


@given(WEIGHTS)
def test_each_has_exactly_its_share_of_every_round(weights: list[int]) -> None:
    several = targets("round-robin", *weights)
    for _ in range(3):
        count = Counter(asked(several, sum(weights)))
        assert [count[port] for port in range(1, len(weights) + 1)] == weights


def test_the_turns_of_a_heavy_target_are_spread() -> None:
    assert asked(targets("round-robin", 1, 1, 1), 6) == [1, 2, 3, 1, 2, 3]
    assert asked(targets("round-robin", 5, 1, 1), 7) == [1, 1, 2, 1, 3, 1, 1]


def test_a_target_that_comes_back_has_its_share_and_no_more() -> None:
    several = targets("round-robin", 1, 1, 1)
    several.all[0].failed("it is gone")
    assert Counter(asked(several, 30)) == {2: 15, 3: 15}
    several.all[0].succeeded()
    assert Counter(asked(several, 30)) == {1: 10, 2: 10, 3: 10}


def test_the_fewest_connections_for_its_weight_is_next() -> None:
    several = targets("least-connections", 1, 2)
    one, two = several.all
    for _ in range(30):
        order(several)[0].entered()
    assert (one.active, two.active) == (10, 20)
    for _ in range(5):
        two.left()
    assert asked(several, 1) == [2]


def test_of_equals_who_has_served_the_least_is_next() -> None:
    several = targets("least-connections", 1, 1, 1)
    served: Counter[int] = Counter()
    for _ in range(9):
        first = order(several)[0]
        first.took()
        served.update(ports([first]))
    assert served == {1: 3, 2: 3, 3: 3}


def source(number: int) -> Visitor:
    return Visitor(Address(Transport.TCP, f"10.0.{number >> 8}.{number & 255}", number))


def test_a_source_keeps_its_target_whatever_its_port() -> None:
    several, restarted = targets("source", 1, 1, 1), targets("source", 1, 1, 1)
    for number in range(50):
        (first,) = set(asked(several, 3, source(number)))
        other_port = Visitor(Address(Transport.TCP, source(number).peer.host, 9))
        assert asked(several, 1, other_port) == [first]
        assert asked(restarted, 1, source(number)) == [first]


def test_only_the_clients_of_a_failed_target_move_and_come_back() -> None:
    several = targets("source", 1, 1, 1, 1)
    before = {number: asked(several, 1, source(number))[0] for number in range(400)}
    several.all[1].failed("it is gone")
    during = {number: asked(several, 1, source(number))[0] for number in before}
    moved = {number for number in before if before[number] != during[number]}
    assert moved == {number for number in before if before[number] == 2}
    assert {during[number] for number in moved} == {1, 3, 4}
    several.all[1].succeeded()
    assert {number: asked(several, 1, source(number))[0] for number in before} == before


def test_sources_are_shared_out_by_weight() -> None:
    several = targets("source", 1, 3)
    count = Counter(asked(several, 1, source(number))[0] for number in range(4000))
    assert 900 < count[1] < 1100


def test_clients_of_a_unix_socket_are_told_apart_by_their_names() -> None:
    several = targets("source", 1, 1, 1)
    found = set()
    for number in range(50):
        client = Visitor(Address(Transport.UNIX, path=f"@{number}"))
        found.update(asked(several, 2, client))
    assert found == {1, 2, 3}


def test_a_client_whose_name_is_no_text_has_its_target_too() -> None:
    several = targets("source", 1, 1)
    client = Visitor(Address(Transport.UNIX, path="/run/\udcff"))
    assert set(asked(several, 1, client)) <= {1, 2}


def test_the_first_has_all_while_it_is_able() -> None:
    several = targets("first", 1, 1, 1)
    assert asked(several, 3) == [1, 1, 1]
    several.all[0].failed("it is gone")
    assert ports(order(several)) == [2, 3, 1]


# Left out, and tried again


@pytest.mark.parametrize("policy", POLICIES)
def test_those_that_are_left_out_come_last_and_all_are_in_the_order(policy: str) -> None:
    several = targets(policy, 1, 1, 1)
    several.all[1].failed("it is gone")
    assert ports(order(several))[-1] == 2
    for one in several.all:
        one.failed("it is gone")
    assert sorted(ports(order(several))) == [1, 2, 3]


def test_a_target_is_left_out_for_a_while_after_so_many_failures_in_a_row() -> None:
    log = Log()
    one = target(80, fail_after=3, log=log)
    one.failed("no")
    one.failed("no")
    one.succeeded()
    one.failed("no")
    one.failed("no")
    assert one.is_in(time.monotonic())
    assert not log.lines
    one.failed("no")
    assert not one.is_in(time.monotonic())
    assert not one.is_in(time.monotonic() + 9.5)
    assert one.is_in(time.monotonic() + 10)
    assert log.lines == [("warning", "target tcp://192.0.2.1:80 is left out for 10 s: no")]


def test_it_is_logged_once_until_it_serves_again() -> None:
    log = Log()
    one = target(80, log=log)
    for _ in range(5):
        one.failed("no")
    assert len(log.lines) == 1
    one.succeeded()
    one.succeeded()
    assert log.lines[1:] == [("info", "target tcp://192.0.2.1:80 serves again")]
    one.failed("no")
    assert len(log.lines) == 3


def test_a_target_that_has_not_been_left_out_serves_without_a_word() -> None:
    log = Log()
    one = target(80, fail_after=2, log=log)
    one.failed("no")
    one.succeeded()
    assert not log.lines


def test_none_is_ever_left_out_where_fail_after_is_0() -> None:
    log = Log()
    one = target(80, fail_after=0, log=log)
    for _ in range(100):
        one.failed("no")
    assert one.is_in(time.monotonic())
    assert one.row(0)["failures"] == 100
    assert not log.lines


def test_probes_are_told_once_each_way_and_decide_beside_failures() -> None:
    log = Log()
    one = target(80, retry_after=0, log=log)
    for _ in range(3):
        one.probed("no answer in time")
    one.succeeded()
    assert not one.is_in(time.monotonic() + LATER)
    assert one.row(0)["state"] == "down"
    for _ in range(3):
        one.probed("")
    assert one.is_in(time.monotonic())
    assert log.lines == [
        ("warning", "target tcp://192.0.2.1:80 is down: no answer in time"),
        ("info", "target tcp://192.0.2.1:80 is up"),
    ]


def test_status_shows_what_becomes_of_a_target() -> None:
    one = target(80, 3)
    one.entered()
    one.took()
    now = time.monotonic()
    row = {
        "target": "tcp://192.0.2.1:80", "state": "up", "weight": 3, "active": 1, "served": 1,
        "failures": 0, "last-error": "",
    }  # fmt: skip
    assert one.row(now) == row
    one.failed("no")
    one.left()
    row |= {"state": "left out", "active": 0, "failures": 1, "last-error": "no"}
    assert one.row(now) == row
    assert one.row(now + LATER)["state"] == "up"
