"""Events of connections: as a worker writes them, as the master accepts them, and each format."""

from __future__ import annotations

import collections
import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from superd.observe.connections import (
    BATCH_SIZE,
    LONGEST_LINE,
    REFUSALS_IN_FULL,
    ConnectionLog,
    ServiceRecords,
    as_text,
    as_xinetd,
    ends_of,
    message_of,
    parsed,
    pattern_of,
    safe,
    xinetd_message_of,
)
from superd.observe.refusals import MAX_NETBLOCKS, MAX_SOURCES

PID = 4711
ALL_EVENTS = ("accepted", "closed", "refused", "noted")
PEER_AND_LOCAL = ("127.0.0.1:5", "tcp://127.0.0.1:7")


class WorkerLog:
    """A worker's connection log with a recorded channel to the master and a recorded loop."""

    def __init__(self) -> None:
        self.batches: list[bytes] = []
        self.is_accepted = True
        self.later: list[Callable[[], None]] = []
        self.lost: list[int] = []
        self.log = ConnectionLog(PID, self.send, self.call_later, self.lost.append)

    def send(self, batch: bytes) -> bool:
        if self.is_accepted:
            self.batches.append(batch)
        return self.is_accepted

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        assert 0 < delay < 1
        self.later.append(callback)

    def records(
        self, service: str = "echo", events: tuple[str, ...] = ALL_EVENTS
    ) -> ServiceRecords:
        return ServiceRecords(self.log, service, events)

    def events(self) -> list[dict[str, Any]]:
        self.log.flush()
        return [parsed(line) for batch in self.batches for line in batch.splitlines()]


def test_each_event_has_the_fields_of_its_kind() -> None:
    worker = WorkerLog()
    records = worker.records()
    records.accepted(ends_of("1-2", *PEER_AND_LOCAL))
    records.closed(ends_of("1-2", *PEER_AND_LOCAL), 1.25, 3, 4, "client")
    records.refused(*PEER_AND_LOCAL, "max-load")
    records.answered(ends_of("1-3", *PEER_AND_LOCAL), 26, "server")
    records.closed(ends_of("1-4", *PEER_AND_LOCAL), 1.25, None, None, "server", "status 0")
    common = {"pid": PID, "service": "echo", "peer": PEER_AND_LOCAL[0], "local": PEER_AND_LOCAL[1]}
    closing = {"duration": 1.25, "in": 3, "out": 4, "end": "client"}
    at_once = {"duration": 0.0, "in": 0, "out": 26, "end": "server"}
    unknown = {"duration": 1.25, "end": "server", "outcome": "status 0"}
    found = worker.events()
    assert all(abs(event.pop("time") - time.time()) < 60 for event in found)
    assert found == [
        {**common, "event": "accepted", "conn": "1-2"},
        {**common, "event": "closed", "conn": "1-2", **closing},
        {**common, "event": "refused", "reason": "max-load"},
        {**common, "event": "accepted", "conn": "1-3"},
        {**common, "event": "closed", "conn": "1-3", **at_once},
        {**common, "event": "closed", "conn": "1-4", **unknown},
    ]
    matches = pattern_of(PID, ["echo"]).fullmatch
    assert all(matches(batch) for batch in worker.batches)


@pytest.mark.parametrize("wanted", [(), ("accepted",), ("closed",), ("refused",), ALL_EVENTS])
def test_a_worker_writes_only_the_events_that_the_entry_asks_for(wanted: tuple[str, ...]) -> None:
    worker = WorkerLog()
    records = worker.records(events=wanted)
    records.accepted(ends_of("1-2", *PEER_AND_LOCAL))
    records.closed(ends_of("1-2", *PEER_AND_LOCAL), 1, 3, 4, "client")
    records.refused(*PEER_AND_LOCAL, "access")
    records.answered(ends_of("1-3", *PEER_AND_LOCAL), 26, "server")
    expected = [e for e in ("accepted", "closed", "refused", "accepted", "closed") if e in wanted]
    assert [event["event"] for event in worker.events()] == expected


def test_a_worker_sends_lines_in_batches_and_in_order() -> None:
    worker = WorkerLog()
    records = worker.records()
    for number in range(1000):
        records.accepted(ends_of(f"1-{number:x}", *PEER_AND_LOCAL))
    assert 0 < len(worker.batches) < 20
    assert all(len(batch) <= BATCH_SIZE + LONGEST_LINE for batch in worker.batches)
    assert [int(event["conn"][2:], 16) for event in worker.events()] == list(range(1000))


def test_a_worker_sends_a_single_line_after_the_batch_delay() -> None:
    worker = WorkerLog()
    worker.records().accepted(ends_of("1-1", *PEER_AND_LOCAL))
    assert not worker.batches
    (flush,) = worker.later
    flush()
    assert len(worker.batches) == 1
    flush()
    assert len(worker.batches) == 1


def test_a_worker_counts_and_reports_the_lines_that_the_master_did_not_accept() -> None:
    worker = WorkerLog()
    records = worker.records()
    worker.is_accepted = False
    for _ in range(7):
        records.answered(ends_of("1-3", *PEER_AND_LOCAL), 26, "server")
    worker.log.flush()
    assert worker.lost == []
    worker.is_accepted = True
    records.accepted(ends_of("1-4", *PEER_AND_LOCAL))
    assert len(worker.events()) == 1
    assert worker.lost == [14]


def test_a_flood_of_refusals_is_written_in_part_and_counted_completely() -> None:
    worker = WorkerLog()
    records = worker.records()
    for number in range(1000):
        records.refused(f"127.0.0.1:{number}", PEER_AND_LOCAL[1], "rate-per-source")
        records.refused(*PEER_AND_LOCAL, "access") if number < 5 else None
    records.end_window()
    records.end_window()
    found = worker.events()
    rates = [event for event in found if event["reason"] == "rate-per-source"]
    assert len(found) - len(rates) == 5
    assert len(rates) == REFUSALS_IN_FULL + 1
    assert sum(event.get("count", 1) for event in rates) == 1000
    assert rates[-1]["peer"] == "127.0.0.1:999"
    records.refused(*PEER_AND_LOCAL, "rate-per-source")
    assert len(worker.events()) == len(found) + 1  # a new window


def test_the_refusals_of_a_flood_are_counted_for_the_source_that_had_them() -> None:
    worker = WorkerLog()
    records = worker.records()
    had = {f"192.0.2.{n}": n for n in range(1, 30)} | {"[2001:db8::1]": 40}
    for host, number in had.items():
        for port in range(number):
            records.refused(f"{host}:{port}", PEER_AND_LOCAL[1], "access")
    records.end_window()
    told = collections.Counter[str]()
    for event in worker.events():
        told[event["peer"].rpartition(":")[0]] += event.get("count", 1)
    assert told == had
    last = worker.events()[-1]
    assert (last["peer"], last["count"]) == ("[2001:db8::1]:39", 40)
    assert xinetd_message_of(last) == "FAIL: echo address from=2001:db8::1"


def test_the_sources_of_a_flood_beyond_a_bound_are_counted_by_netblock_and_then_together() -> None:
    worker = WorkerLog()
    records = worker.records()
    for number in range(20_000):
        host = f"10.{number % 150}.{number // 256 % 256}.{number % 256}"
        records.refused(f"{host}:1", PEER_AND_LOCAL[1], "access")
    records.end_window()
    found = worker.events()[REFUSALS_IN_FULL:]
    assert sum(event.get("count", 1) for event in found) == 20_000 - REFUSALS_IN_FULL
    hosts = [event for event in found if event["peer"].endswith(":1")]
    netblocks = [event for event in found if event["peer"].endswith(".0/24")]
    (others,) = [event for event in found if not event["peer"]]
    assert (len(hosts), len(netblocks)) == (MAX_SOURCES, MAX_NETBLOCKS)
    assert len(found) == MAX_SOURCES + MAX_NETBLOCKS + 1
    assert xinetd_message_of(netblocks[0]).endswith(f"from={netblocks[0]['peer']}")
    assert xinetd_message_of(others) == "FAIL: echo address"
    assert f" peer={netblocks[0]['peer']} " in message_of(netblocks[0])
    records.refused(*PEER_AND_LOCAL, "access")
    records.end_window()
    assert len(worker.events()) == REFUSALS_IN_FULL + len(found) + 1  # nothing is left


# the name of a unix client may have any bytes, the note of a plugin any text
TEXTS = st.text() | st.binary(max_size=108).map(os.fsdecode) | st.just("\U0001f600" * 5000)


@given(TEXTS, TEXTS, TEXTS)
@example('"' * 5000, "\\" * 5000, "\udcff" * 5000)
@example("\x1b" * 108, "\u202e" * 108, "\U0001f600" * 108)
def test_no_text_of_a_client_can_forge_or_break_a_line(peer: str, local: str, outcome: str) -> None:
    worker = WorkerLog()
    service = "we.b" * 16
    records = worker.records(service)
    ends = ends_of("ffffffff-ffffffffffff", safe(peer), safe(local))
    records.accepted(ends)
    records.closed(ends, 1e9, 1 << 60, 1 << 60, "first-byte-timeout", outcome)
    records.answered(ends, 26, "server")
    for _ in range(REFUSALS_IN_FULL + 1):
        records.refused(safe(peer), safe(local), "daemon-rate-per-source")
    records.end_window()
    worker.log.flush()
    batch = b"".join(worker.batches)
    assert pattern_of(PID, ["web", service]).fullmatch(batch)
    assert batch.count(b"\n") == 4 + REFUSALS_IN_FULL + 1
    assert max(map(len, batch.splitlines())) < LONGEST_LINE
    for event in map(parsed, batch.splitlines()):
        assert event["service"] == service
        assert event["peer"] == json.loads(f'"{safe(peer)}"')
        for form in (as_text, as_xinetd, message_of):
            assert form(event).isprintable()


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "{}", '{"event":"accepted"}', '{"time":1,"event":"closed"}', "\x00"]
)
def test_a_line_that_is_not_an_event_is_rejected(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  json raises its own subclasses
        parsed(text)


ENDS = b'"conn":"1-2","peer":"127.0.0.1:5","local":"tcp://127.0.0.1:7"'
CLOSED = b'"closed",' + ENDS + b',"duration":0.000001,"in":0,"out":26,"end":"server"'
REFUSED = b'"refused","peer":"@a","local":"unix:///a","reason":"access"'
NOTED = b'"noted",' + ENDS + rb',"text":"\u00e9 \\ \" {}","facts":{"a":"\"1\"","b-2":"\\"}'
REJECTION_TIME_LIMIT = 5  # seconds; quadratic time would take hours


def line_of(event: bytes, time: bytes = b"1700000000.123") -> bytes:
    return b'{"time":%b,"pid":%d,"service":"echo","event":%b}\n' % (time, PID, event)


@pytest.mark.parametrize(
    "event",
    [
        b'"accepted",' + ENDS,
        CLOSED,
        NOTED,
        CLOSED + rb',"outcome":"signal 9 \u00e9 \\ \" {}"',
        REFUSED,
        REFUSED + b',"count":980',
        REFUSED.replace(b"@a", b""),
    ],
)
def test_the_pattern_accepts_the_events_that_a_worker_writes(event: bytes) -> None:
    assert pattern_of(PID, ["echo"]).fullmatch(line_of(event) * 3)
    assert parsed(line_of(event))["service"] == "echo"


@pytest.mark.parametrize(
    "event",
    [
        REFUSED + b',"service":"web"',
        REFUSED + b',"pid":1',
        REFUSED + b',"time":1e300',
        REFUSED + b',"x=1\\nMESSAGE":"forged"',
        REFUSED + b',"count":01',
        REFUSED + b',"count":-1',
        REFUSED + b',"count":1e9',
        REFUSED + b"," + b'"count":1' * 2,
        REFUSED.replace(b'"@a"', b"[" * 500 + b"]" * 500),
        REFUSED.replace(b"@a", b'a"'),
        REFUSED.replace(b"@a", b"a\\"),
        REFUSED.replace(b"@a", b"\\n"),
        REFUSED.replace(b"@a", b"\\u12"),
        REFUSED.replace(b"@a", b"\\uD83D"),
        REFUSED.replace(b"@a", b"\x7f"),
        REFUSED.replace(b"@a", b"a" * LONGEST_LINE),
        REFUSED.replace(b"access", b"ac cess"),
        CLOSED.replace(b"0.000001", b"Infinity"),
        CLOSED.replace(b"0.000001", b"-1.000000"),
        CLOSED.replace(b"26", b"[]"),
        CLOSED.replace(b"26", b"9" * 5000),
        CLOSED.replace(b"1-2", b"x"),
        CLOSED + b',"outcome":1',
        b'"accepted"',
        b'"opened",' + ENDS,
        ENDS,
        b"boo, hoo",
    ],
)
def test_the_pattern_rejects_any_other_line(event: bytes) -> None:
    pattern = pattern_of(PID, ["echo"])
    assert not pattern.fullmatch(line_of(event))
    assert not pattern.fullmatch(line_of(REFUSED) * 100 + line_of(event))


@pytest.mark.parametrize("event", [b'"accepted",' + ENDS, CLOSED, REFUSED + b',"count":980', NOTED])
def test_the_master_rejects_a_batch_whose_last_line_is_incomplete(event: bytes) -> None:
    fullmatch = pattern_of(PID, ["echo"]).fullmatch
    whole, last = line_of(REFUSED), line_of(event)
    assert fullmatch(whole + last)
    assert [length for length in range(1, len(last)) if fullmatch(whole + last[:length])] == []


def test_the_master_rejects_a_long_batch_in_linear_time() -> None:
    fullmatch = pattern_of(PID, ["echo"]).fullmatch
    batch = line_of(NOTED) * 10_000
    started = time.process_time()
    assert not fullmatch(batch + line_of(NOTED)[:-1])
    assert time.process_time() - started < REJECTION_TIME_LIMIT


@pytest.mark.parametrize("time", [b"0.000", b"7.001", b"99999999.999", b"99999999999.999"])
def test_the_pattern_accepts_any_time_since_1970(time: bytes) -> None:
    assert pattern_of(PID, ["echo"]).fullmatch(line_of(REFUSED, time))


@pytest.mark.parametrize("time", [b"0000000000.000", b"1e9", b"999999999999.000", b"1700000000"])
def test_the_pattern_rejects_malformed_and_distant_times(time: bytes) -> None:
    assert not pattern_of(PID, ["echo"]).fullmatch(line_of(REFUSED, time))


EVENT_TIME = time.mktime((2026, 11, 22, 5, 47, 17, 0, 0, -1))


def event_of(kind: str, peer: str = "127.0.0.1:51234", **more: Any) -> dict[str, Any]:
    return {
        "time": EVENT_TIME, "pid": 5, "service": "envsvc", "event": kind, "peer": peer, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (event_of("accepted"), "START: envsvc pid=0 from=127.0.0.1"),
        (event_of("accepted", program=1558), "START: envsvc pid=1558 from=127.0.0.1"),
        (
            event_of("closed", program=1558, duration=3.99),
            "EXIT: envsvc status=0 pid=1558 duration=3(sec)",
        ),
        (event_of("accepted", "[2001:db8::1]:5"), "START: envsvc pid=0 from=2001:db8::1"),
        (event_of("accepted", "(unnamed)", local="unix:///a"), "START: envsvc pid=0"),
        (event_of("accepted", "192.0.2.1:5", local="unix:///a"), "START: envsvc pid=0"),
        (event_of("closed", duration=3.99), "EXIT: envsvc status=0 pid=0 duration=3(sec)"),
        (event_of("refused", reason="access"), "FAIL: envsvc address from=127.0.0.1"),
        (event_of("refused", reason="banned"), "FAIL: envsvc address from=127.0.0.1"),
        (event_of("refused", reason="access-times"), "FAIL: envsvc time from=127.0.0.1"),
        (event_of("refused", reason="max-load"), "FAIL: envsvc load from=127.0.0.1"),
        (
            event_of("refused", reason="max-connections"),
            "FAIL: envsvc service_limit from=127.0.0.1",
        ),
        (
            event_of("refused", reason="max-per-source"),
            "FAIL: envsvc per_source_limit from=127.0.0.1",
        ),
        (
            event_of("refused", reason="daemon-max-connections"),
            "FAIL: envsvc process_limit from=127.0.0.1",
        ),
        (
            event_of("refused", reason="rate"),
            "FAIL: envsvc connections per second from=127.0.0.1",
        ),
    ],
)
def test_the_xinetd_format_equals_that_of_xinetd(event: dict[str, Any], expected: str) -> None:
    assert as_xinetd(event) == f"26/11/22@05:47:17: {expected}"


def test_the_text_format_has_readable_times_and_pairs() -> None:
    event = event_of("closed", conn="1-2", duration=0.0123456, end="idle-timeout")
    assert as_text(event) == (
        "2026-11-22 05:47:17.000 superd[5] info: closed service=envsvc peer=127.0.0.1:51234"
        " conn=1-2 duration=0.012 end=idle-timeout"
    )


def test_the_text_format_has_the_milliseconds_of_the_json() -> None:
    event = {**event_of("accepted"), "time": EVENT_TIME + 0.123}  # as a float it is slightly less
    assert as_text(event).startswith("2026-11-22 05:47:17.123 ")


def test_a_value_with_spaces_is_quoted_in_the_text_format() -> None:
    event = event_of("accepted", '@a" end=client', local="unix:///a")
    assert message_of(event) == r'accepted service=envsvc peer="@a\" end=client" local=unix:///a'


def test_the_pattern_reads_service_names_literally() -> None:
    line = line_of(REFUSED)
    assert pattern_of(PID, ["a+b"]).fullmatch(line.replace(b"echo", b"a+b"))
    assert not pattern_of(PID, ["a+b"]).fullmatch(line.replace(b"echo", b"aab"))
