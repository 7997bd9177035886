"""Who has knocked too often, and what the ports are called: both without a daemon."""

from __future__ import annotations

from pathlib import Path

import pytest
from superd_sniffer.offenders import MOST_HOSTS, Culprits
from superd_sniffer.ports import port_names

from superd.net.patterns import parse_network

A, B = "192.0.2.1", "2001:db8::1"


def dues(culprits: Culprits, *knocks: tuple[str, float]) -> list[bool]:
    return [culprits.is_due(host, now) for host, now in knocks]


def test_the_knock_that_is_one_too_many_is_told_and_counting_starts_anew() -> None:
    culprits = Culprits(3, 60, ())
    assert dues(culprits, *[(A, n) for n in range(7)]) == [False, False, True] * 2 + [False]


def test_each_host_is_counted_for_itself() -> None:
    culprits = Culprits(2, 60, ())
    assert dues(culprits, (A, 0), (B, 1), (A, 2), (B, 3)) == [False, False, True, True]


@pytest.mark.parametrize(("last", "is_due"), [(60.0, True), (60.1, False)])
def test_only_knocks_within_the_time_count(last: float, is_due: bool) -> None:
    culprits = Culprits(3, 60, ())
    assert dues(culprits, (A, 0), (A, 30), (A, last)) == [False, False, is_due]


def test_the_time_is_that_of_the_last_ones() -> None:
    culprits = Culprits(3, 10, ())
    times = [0, 8, 16, 17]
    assert dues(culprits, *[(A, now) for now in times]) == [False, False, False, True]


def test_the_first_can_be_enough() -> None:
    assert dues(Culprits(1, 60, ()), (A, 0), (A, 0)) == [True, True]


@pytest.mark.parametrize(
    ("host", "is_spared"),
    [
        ("192.0.2.1", True),
        ("192.0.3.1", False),
        ("2001:db8::1", True),
        ("2001:db9::1", False),
        ("fe80::1%eth0", True),
        ("fe90::1%eth0", False),
    ],
)
def test_who_is_never_banned(host: str, is_spared: bool) -> None:
    never = [parse_network(text) for text in ("192.0.2.0/24", "2001:db8::/32", "fe80::/16")]
    assert Culprits(1, 60, never).is_due(host, 0) is not is_spared


def test_only_so_many_hosts_are_remembered_those_that_came_last() -> None:
    culprits = Culprits(2, 1e9, ())
    assert not culprits.is_due(A, 0)
    assert not culprits.is_due(B, 1)
    for number in range(MOST_HOSTS - 1):
        host = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        assert not culprits.is_due(host, 2)
    assert len(culprits._knocks) == MOST_HOSTS
    assert culprits.is_due(B, 3), "the last but one was forgotten"
    assert not culprits.is_due(A, 3), "the first was remembered"


SERVICES = """\
# comment
tcpmux\t\t1/tcp\t\t\t# TCP port service multiplexer
echo            7/tcp
echo            7/udp
http            80/tcp          www             # WorldWideWeb HTTP
other           80/tcp
sctp            80/sctp
broken
broken          x/tcp
broken          \u0662/tcp
half            81
 indented       82/tcp
"""


def test_names_of_ports_are_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "services"
    file.write_bytes(SERVICES.encode() + b"\xff\xfe  83/tcp\n")
    names = port_names(file)
    assert names.pop(("tcp", 83))
    assert names.pop(("", 81), "half") == "half"
    assert names == {
        ("tcp", 1): "tcpmux",
        ("tcp", 7): "echo",
        ("udp", 7): "echo",
        ("tcp", 80): "http",
        ("sctp", 80): "sctp",
        ("tcp", 82): "indented",
    }


def test_no_file_means_no_names(tmp_path: Path) -> None:
    assert port_names(tmp_path / "none") == {}
    assert port_names(tmp_path) == {}
