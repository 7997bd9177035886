"""Log records: nothing that a client or a plugin sends can forge a line or make one endless."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superd.observe.records import (
    LONGEST_DETAIL,
    LONGEST_TEXT,
    FloodGate,
    Record,
    as_json,
    as_message,
    as_text,
    decoded,
    encoded,
    escaped,
    failure,
)
from superd.worker.channel import MAX_MESSAGE_SIZE

RECORD = Record("info", "hello", pid=7, time=1_700_000_000.25)

# all of Unicode with lone surrogates, and more often the control characters of terminals
TEXTS = st.text(st.characters() | st.sampled_from("\n\r\t\x00\x1b\x7f\x85\u2028\u202e\ud800"))
RECORDS = st.builds(
    Record,
    level=st.sampled_from(("debug", "info", "warning", "error")),
    message=TEXTS,
    service=TEXTS,
    connection=TEXTS,
    peer=TEXTS,
    pid=st.just(7),
    time=st.floats(0.0, 1e10),
    detail=st.lists(TEXTS, max_size=3).map(tuple),
)


@given(TEXTS)
def test_escaped_text_is_printable_and_within_the_maximum_length(text: str) -> None:
    assert escaped(text).isprintable()
    assert len(escaped(text)) <= LONGEST_TEXT


@given(RECORDS)
def test_a_record_has_one_line_for_its_message_and_one_for_each_of_its_details(
    record: Record,
) -> None:
    for form in (as_text(record), as_message(record)):
        lines = form.split("\n")
        assert len(lines) == 1 + len(record.detail)
        assert all(line.isprintable() for line in lines)
        form.encode()


@given(RECORDS)
def test_a_record_as_json_is_one_line_with_every_field(record: Record) -> None:
    line = as_json(record)
    assert line.isprintable()
    assert line.isascii()
    data = json.loads(line)
    assert data["level"] == record.level
    assert data.get("message", "") == record.message
    assert data.get("detail", []) == list(record.detail)


def test_a_text_of_a_megabyte_is_cut_in_every_format() -> None:
    record = replace(RECORD, message="\x1b" * 1_000_000, detail=("x" * 1_000_000,))
    assert len(escaped(record.message)) == LONGEST_TEXT
    assert len(as_text(record)) < 3 * LONGEST_TEXT
    data = json.loads(as_json(record))
    assert len(data["message"]) == len(data["detail"][0]) == LONGEST_TEXT


def test_the_text_format_has_time_process_message_service_connection_and_peer() -> None:
    record = replace(RECORD, service="web", connection="1-a", peer="192.0.2.1:4", detail=("why",))
    first, second = as_text(record).split("\n")
    assert first.endswith(".250 superd[7] info: hello service=web conn=1-a peer=192.0.2.1:4")
    assert second.endswith(".250 superd[7] info: | why")


@given(RECORDS)
def test_the_master_decodes_a_record_as_the_worker_encoded_it(record: Record) -> None:
    sent = json.loads(json.dumps(encoded(record)))
    assert decoded(sent, 7) == record


def test_the_master_replaces_the_pid_in_a_record_of_a_worker() -> None:
    assert decoded(encoded(replace(RECORD, pid=1)), 7).pid == 7


def test_the_longest_record_without_detail_fits_into_a_message() -> None:
    worst = "\U0001f600" * 2 * LONGEST_TEXT  # twelve bytes each in JSON
    data = encoded(replace(RECORD, message=worst, service="s" * 64, peer="\x01" * 108))
    assert len(json.dumps(data)) < MAX_MESSAGE_SIZE


@pytest.mark.parametrize(
    "change",
    [
        {"level": "fatal"},
        {"level": None},
        {"level": []},
        {"message": None},
        {"message": {"a": 1}},
        {"peer": 1},
        {"service": ["x"]},
        {"detail": 5},
        {"detail": None},
        {"detail": "a text"},
        {"detail": [1]},
        {"detail": ["x"] * (LONGEST_DETAIL + 1)},
        {"time": "now"},
        {"time": float("nan")},
        {"time": float("inf")},
        {"time": 1e300},
        {"time": -1.0},
        {"time": True},
        {"surprise": 1},
    ],
    ids=str,
)
def test_the_master_rejects_a_record_with_an_invalid_field(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a log record"):
        decoded({**encoded(RECORD), **change}, 7)


def test_the_master_rejects_a_record_without_a_message() -> None:
    with pytest.raises(ValueError, match="not a log record"):
        decoded({"level": "info"}, 7)


def test_a_traceback_is_kept_to_its_first_and_last_lines() -> None:
    error: BaseException | None = None
    try:
        exec("def f(n):\n if n: g(n - 1)\ndef g(n):\n if n: f(n - 1)\n else: 1 / 0\nf(99)", {})
    except ZeroDivisionError as caught:
        error = caught
    assert error is not None
    record = failure("it failed", error, service="web")
    assert record.message == "it failed: ZeroDivisionError: division by zero"
    assert len(record.detail) == LONGEST_DETAIL
    assert record.detail[0].startswith("Traceback")
    assert record.detail[-1] == "ZeroDivisionError: division by zero"


def test_a_flood_of_equal_records_has_one_line_at_first_and_one_per_window() -> None:
    lines: list[str] = []
    gate = FloodGate(lambda record: lines.append(record.message))
    for window in range(3):
        for _ in range(1000):
            gate.report("key", RECORD)
        gate.flush()
        assert len(lines) == window + 2
    assert lines == [
        "hello",
        "hello (999 more like this)",
        "hello (1000 more like this)",
        "hello (1000 more like this)",
    ]


def test_a_record_after_a_quiet_window_is_written_immediately() -> None:
    lines: list[str] = []
    gate = FloodGate(lambda record: lines.append(record.message))
    for _ in range(3):
        gate.report("key", RECORD)
    gate.flush()
    gate.flush()
    gate.report("key", RECORD)
    gate.flush()
    assert lines == ["hello", "hello (2 more like this)", "hello"]


def test_records_with_different_keys_do_not_delay_each_other() -> None:
    lines: list[str] = []
    gate = FloodGate(lambda record: lines.append(record.message))
    gate.report("a", RECORD)
    gate.report("b", RECORD)
    assert len(lines) == 2


def test_the_line_for_a_flood_names_a_client_only_if_it_is_about_no_other() -> None:
    reported: list[Record] = []
    gate = FloodGate(reported.append)
    for peer in ("192.0.2.1:1", "192.0.2.2:1", "192.0.2.2:2"):
        gate.report("key", Record("info", "hello", peer=peer))
    gate.flush()
    for peer in ("192.0.2.3:1", "192.0.2.4:1", "192.0.2.4:2"):
        gate.report("key", Record("info", "hello", peer=peer))
    gate.flush()
    assert [(record.message, record.peer) for record in reported] == [
        ("hello", "192.0.2.1:1"),
        ("hello (2 more like this)", "192.0.2.2:2"),
        ("hello (3 more like this)", ""),
    ]
