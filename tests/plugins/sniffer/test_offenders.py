"""Counting of knocks, and names of ports: without a daemon."""

from __future__ import annotations

from pathlib import Path

import pytest
from superd_sniffer.offenders import MAX_HOSTS, Offenders
from superd_sniffer.ports import port_names

from superd.net.patterns import parse_network

A, B = "192.0.2.1", "2001:db8::1"


def verdicts(offenders: Offenders, *knocks: tuple[str, float]) -> list[bool]:
    return [offenders.count(host, now) for host, now in knocks]


def test_the_last_allowed_knock_is_an_offence_and_the_count_restarts() -> None:
    offenders = Offenders(3, 60, ())
    assert verdicts(offenders, *[(A, n) for n in range(7)]) == [False, False, True] * 2 + [False]


def test_each_host_has_its_own_count() -> None:
    offenders = Offenders(2, 60, ())
    assert verdicts(offenders, (A, 0), (B, 1), (A, 2), (B, 3)) == [False, False, True, True]


@pytest.mark.parametrize(("last", "is_due"), [(60.0, True), (60.1, False)])
def test_only_knocks_within_the_period_count(last: float, is_due: bool) -> None:
    offenders = Offenders(3, 60, ())
    assert verdicts(offenders, (A, 0), (A, 30), (A, last)) == [False, False, is_due]


def test_the_period_spans_the_last_knocks() -> None:
    offenders = Offenders(3, 10, ())
    times = [0, 8, 16, 17]
    assert verdicts(offenders, *[(A, now) for now in times]) == [False, False, False, True]


def test_the_first_knock_can_be_an_offence() -> None:
    assert verdicts(Offenders(1, 60, ()), (A, 0), (A, 0)) == [True, True]


@pytest.mark.parametrize(
    ("host", "is_exempt"),
    [
        ("192.0.2.1", True),
        ("192.0.3.1", False),
        ("2001:db8::1", True),
        ("2001:db9::1", False),
        ("fe80::1%eth0", True),
        ("fe90::1%eth0", False),
    ],
)
def test_hosts_of_exempt_networks_are_no_offenders(host: str, is_exempt: bool) -> None:
    never = [parse_network(text) for text in ("192.0.2.0/24", "2001:db8::/32", "fe80::/16")]
    assert Offenders(1, 60, never).count(host, 0) is not is_exempt


def test_a_bounded_number_of_hosts_is_kept_the_latest() -> None:
    offenders = Offenders(2, 1e9, ())
    assert not offenders.count(A, 0)
    assert not offenders.count(B, 1)
    for number in range(MAX_HOSTS - 1):
        host = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        assert not offenders.count(host, 2)
    assert len(offenders._knocks) == MAX_HOSTS
    assert offenders.count(B, 3), "the second oldest host was dropped"
    assert not offenders.count(A, 3), "the oldest host was kept"


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


def test_ports_are_named_by_the_file(tmp_path: Path) -> None:
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


def test_without_a_file_ports_have_no_names(tmp_path: Path) -> None:
    assert port_names(tmp_path / "none") == {}
    assert port_names(tmp_path) == {}
