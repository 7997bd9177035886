"""Token buckets, sources and load: each limit alone, by tables."""

from __future__ import annotations

import pytest

from superd.admission.access import UnixPeer
from superd.admission.limits import SECOND, Bucket, Load, source_of
from superd.config.model import SourceNetblock


@pytest.mark.parametrize(
    ("rate", "burst", "expected"),
    [
        (0.0, 0, None),
        (0.0, 5, None),
        (50.0, 0, Bucket(20_000_000, 50)),
        (50.0, 5, Bucket(20_000_000, 5)),
        (1 / 60, 0, Bucket(60 * SECOND, 1)),
        (1.5, 0, Bucket(666_666_667, 1)),
    ],
)
def test_a_bucket_holds_the_tokens_of_one_second_unless_burst_is_set(
    rate: float, burst: int, expected: Bucket | None
) -> None:
    assert Bucket.of(rate, burst) == expected


def admissions(bucket: Bucket, moments: list[int]) -> list[bool]:
    """Return for events at some times whether a bucket admits each."""
    due, answers = 0, []
    for now in moments:
        answers.append(not bucket.wait(due, now))
        if answers[-1]:
            due = bucket.after(due, now)
    return answers


def test_a_bucket_admits_a_burst_and_then_one_event_each_interval() -> None:
    start = 1000 * SECOND
    bucket = Bucket(SECOND, 3)
    moments = [start] * 5 + [start + SECOND] * 2 + [start + 10 * SECOND] * 4
    expected = [True] * 3 + [False] * 2 + [True, False] + [True] * 3 + [False]
    assert admissions(bucket, moments) == expected


def test_a_bucket_returns_the_time_until_the_next_token() -> None:
    bucket = Bucket(SECOND, 2)
    now = 1000 * SECOND
    due = bucket.after(bucket.after(0, now), now)
    assert bucket.wait(due, now) == SECOND
    assert bucket.wait(due, now + SECOND - 1) == 1
    assert bucket.wait(due, now + SECOND) == 0


@pytest.mark.parametrize(
    ("first", "second", "ipv4", "ipv6", "is_same"),
    [
        ("192.0.2.1", "192.0.2.1", 32, 64, True),
        ("192.0.2.1", "192.0.2.2", 32, 64, False),
        ("192.0.2.1", "192.0.2.2", 24, 64, True),
        ("192.0.2.1", "192.0.3.1", 24, 64, False),
        ("192.0.2.1", "198.51.100.1", 0, 64, True),
        ("192.0.2.1", "::ffff:192.0.2.1", 32, 64, True),
        ("192.0.2.1", "::ffff:192.0.2.99", 24, 64, True),
        ("2001:db8::1", "2001:db8::ffff:2", 32, 64, True),
        ("2001:db8::1", "2001:db8:0:1::1", 32, 64, False),
        ("2001:db8::1", "2001:db8:0:1::1", 32, 48, True),
        ("2001:db8::1", "2001:db8::2", 32, 128, False),
        ("fe80::1%lo", "fe80::2%eth0", 32, 64, True),
        ("::1", "192.0.2.1", 0, 0, False),
        (UnixPeer(0), UnixPeer(0, (5,)), 32, 64, True),
        (UnixPeer(0), UnixPeer(1000), 0, 0, False),
    ],
)
def test_hosts_of_one_netblock_and_peers_of_one_user_are_one_source(
    first: str | UnixPeer, second: str | UnixPeer, ipv4: int, ipv6: int, is_same: bool
) -> None:
    netblock = SourceNetblock(ipv4=ipv4, ipv6=ipv6)
    assert (source_of(first, netblock) == source_of(second, netblock)) is is_same


def test_the_load_is_read_once_a_second() -> None:
    answers = iter([1.0, 2.0])
    load = Load(lambda: next(answers))
    now = 1000 * SECOND
    assert [load.at(now), load.at(now + SECOND - 1), load.at(now + SECOND)] == [1.0, 1.0, 2.0]
