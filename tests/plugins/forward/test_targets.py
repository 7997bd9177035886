"""Which target is next, and which is left out: policies alone, without a network."""

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

PEER = Address(Transport.TCP, "192.0.2.1", 5)
LATER = 100.0  # seconds; longer than any retry-after here


@dataclass
class FakeClient:
    """A client with all attributes that a policy uses."""

    peer: Address = PEER


class Log:
    """Collects log lines."""

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
        listens_on=lambda transport, port: False,
        log=log or Log(),
        distrust=lambda host: None,
    )


def targets(policy: str, *weights: int) -> Targets:
    made = [target(port, weight) for port, weight in enumerate(weights, 1)]
    return Targets(made, POLICIES[policy]())


def order(several: Targets, client: FakeClient | None = None) -> Sequence[Target]:
    return several.order(cast(Client, client or FakeClient()))


def ports(several: Sequence[Target]) -> list[int]:
    return [one.destination.port for one in several]


def targets_tried(several: Targets, number: int, client: FakeClient | None = None) -> list[int]:
    """Return the port of the first target for each of `number` clients, one after the other."""
    return [ports(order(several, client))[0] for _ in range(number)]


WEIGHTS = st.lists(st.integers(1, 20), min_size=2, max_size=6)


@given(WEIGHTS)
def test_each_target_has_exactly_its_share_of_each_cycle(weights: list[int]) -> None:
    several = targets("round-robin", *weights)
    for _ in range(3):
        count = Counter(targets_tried(several, sum(weights)))
        assert [count[port] for port in range(1, len(weights) + 1)] == weights


def test_a_target_of_high_weight_is_interleaved_with_others() -> None:
    assert targets_tried(targets("round-robin", 1, 1, 1), 6) == [1, 2, 3, 1, 2, 3]
    assert targets_tried(targets("round-robin", 5, 1, 1), 7) == [1, 1, 2, 1, 3, 1, 1]


def test_a_target_that_serves_again_gets_its_share_and_no_more() -> None:
    several = targets("round-robin", 1, 1, 1)
    several.all[0].failed("it is down")
    assert Counter(targets_tried(several, 30)) == {2: 15, 3: 15}
    several.all[0].succeeded()
    assert Counter(targets_tried(several, 30)) == {1: 10, 2: 10, 3: 10}


def test_the_target_with_the_fewest_connections_per_weight_is_next() -> None:
    several = targets("least-connections", 1, 2)
    one, two = several.all
    for _ in range(30):
        order(several)[0].client_added()
    assert (one.active, two.active) == (10, 20)
    for _ in range(5):
        two.client_removed()
    assert targets_tried(several, 1) == [2]


def test_among_equals_the_target_that_served_least_is_next() -> None:
    several = targets("least-connections", 1, 1, 1)
    served: Counter[int] = Counter()
    for _ in range(9):
        first = order(several)[0]
        first.accepted()
        served.update(ports([first]))
    assert served == {1: 3, 2: 3, 3: 3}


def source(number: int) -> FakeClient:
    return FakeClient(Address(Transport.TCP, f"10.0.{number >> 8}.{number & 255}", number))


def test_a_source_keeps_its_target_whatever_its_port() -> None:
    several, restarted = targets("source", 1, 1, 1), targets("source", 1, 1, 1)
    for number in range(50):
        (first,) = set(targets_tried(several, 3, source(number)))
        other_port = FakeClient(Address(Transport.TCP, source(number).peer.host, 9))
        assert targets_tried(several, 1, other_port) == [first]
        assert targets_tried(restarted, 1, source(number)) == [first]


def test_only_the_clients_of_a_failed_target_move_and_come_back() -> None:
    several = targets("source", 1, 1, 1, 1)
    before = {number: targets_tried(several, 1, source(number))[0] for number in range(400)}
    several.all[1].failed("it is down")
    during = {number: targets_tried(several, 1, source(number))[0] for number in before}
    moved = {number for number in before if before[number] != during[number]}
    assert moved == {number for number in before if before[number] == 2}
    assert {during[number] for number in moved} == {1, 3, 4}
    several.all[1].succeeded()
    assert {number: targets_tried(several, 1, source(number))[0] for number in before} == before


def test_sources_are_distributed_by_weight() -> None:
    several = targets("source", 1, 3)
    count = Counter(targets_tried(several, 1, source(number))[0] for number in range(4000))
    assert 900 < count[1] < 1100


def test_clients_of_a_unix_socket_are_distinguished_by_path() -> None:
    several = targets("source", 1, 1, 1)
    found = set()
    for number in range(50):
        client = FakeClient(Address(Transport.UNIX, path=f"@{number}"))
        found.update(targets_tried(several, 2, client))
    assert found == {1, 2, 3}


def test_a_client_with_an_undecodable_path_has_a_target() -> None:
    several = targets("source", 1, 1)
    client = FakeClient(Address(Transport.UNIX, path="/run/\udcff"))
    assert set(targets_tried(several, 1, client)) <= {1, 2}


def test_the_first_target_gets_all_clients_while_available() -> None:
    several = targets("first", 1, 1, 1)
    assert targets_tried(several, 3) == [1, 1, 1]
    several.all[0].failed("it is down")
    assert ports(order(several)) == [2, 3, 1]


# Targets that are left out


@pytest.mark.parametrize("policy", POLICIES)
def test_targets_that_are_left_out_come_last(policy: str) -> None:
    several = targets(policy, 1, 1, 1)
    several.all[1].failed("it is down")
    assert ports(order(several))[-1] == 2
    for one in several.all:
        one.failed("it is down")
    assert sorted(ports(order(several))) == [1, 2, 3]


def test_a_target_is_left_out_after_consecutive_failures() -> None:
    log = Log()
    one = target(80, fail_after=3, log=log)
    one.failed("no")
    one.failed("no")
    one.succeeded()
    one.failed("no")
    one.failed("no")
    assert one.is_available(time.monotonic())
    assert not log.lines
    one.failed("no")
    assert not one.is_available(time.monotonic())
    assert not one.is_available(time.monotonic() + 9.5)
    assert one.is_available(time.monotonic() + 10)
    assert log.lines == [("warning", "target tcp://192.0.2.1:80 is left out for 10 s: no")]


def test_a_target_that_is_left_out_is_logged_once_until_it_serves_again() -> None:
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


def test_a_target_that_was_not_left_out_logs_nothing_when_it_serves() -> None:
    log = Log()
    one = target(80, fail_after=2, log=log)
    one.failed("no")
    one.succeeded()
    assert not log.lines


def test_no_target_is_left_out_with_fail_after_0() -> None:
    log = Log()
    one = target(80, fail_after=0, log=log)
    for _ in range(100):
        one.failed("no")
    assert one.is_available(time.monotonic())
    assert one.status_row(0)["failures"] == 100
    assert not log.lines


def test_probe_results_are_logged_once_per_change_and_override_availability() -> None:
    log = Log()
    one = target(80, retry_after=0, log=log)
    for _ in range(3):
        one.probed("no answer in time")
    one.succeeded()
    assert not one.is_available(time.monotonic() + LATER)
    assert one.status_row(0)["state"] == "down"
    for _ in range(3):
        one.probed("")
    assert one.is_available(time.monotonic())
    assert log.lines == [
        ("warning", "target tcp://192.0.2.1:80 is down: no answer in time"),
        ("info", "target tcp://192.0.2.1:80 is up"),
    ]


def test_status_shows_the_state_of_a_target() -> None:
    one = target(80, 3)
    one.client_added()
    one.accepted()
    now = time.monotonic()
    row = {
        "target": "tcp://192.0.2.1:80", "state": "up", "weight": 3, "active": 1, "served": 1,
        "failures": 0, "last-error": "",
    }  # fmt: skip
    assert one.status_row(now) == row
    one.failed("no")
    one.client_removed()
    row |= {"state": "left out", "active": 0, "failures": 1, "last-error": "no"}
    assert one.status_row(now) == row
    assert one.status_row(now + LATER)["state"] == "up"


def test_a_target_by_name_that_fails_has_its_name_looked_up_again() -> None:
    distrusted: list[str] = []
    by_name, by_address = (
        Target(
            parse_destination(f"tcp://{host}:80"),
            1,
            datagrams=False,
            fail_after=0,
            retry_after=10,
            listens_on=lambda transport, port: False,
            log=Log(),
            distrust=distrusted.append,
        )
        for host in ("app.example", "192.0.2.1")
    )
    for one in (by_address, by_name):
        one.failed("Connection refused")
        one.probed("no answer in time")
        one.probed("")
        one.succeeded()
    assert distrusted == ["app.example"] * 2
