"""The event "noted": any input of a client makes one line, of this event only."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from superd.observe.connections import (
    LONGEST_LINE,
    ConnectionLog,
    ServiceRecords,
    as_text,
    as_xinetd,
    ends_of,
    message_of,
    parsed,
    pattern_of,
    safe,
)

PID = 4711
SERVICES = ("sniffer", "other")
ENDS = ends_of("1-2", safe("192.0.2.1:5"), safe("tcp://192.0.2.9:22"))
KEYS = {"time", "pid", "service", "event", "conn", "peer", "local", "text", "facts"}
NASTY = "\r\n\0\x1b[2J\x7f\x85\u2028\u2029\u202e\ufeff\ud800\U0001f600\"\\'{}= \t" + "a" * 3


def noted(text: str, facts: dict[str, str], ends: str = ENDS) -> bytes:
    """Return the line that a worker sends."""
    sent: list[bytes] = []

    def send(batch: bytes) -> bool:
        sent.append(batch)
        return True

    log = ConnectionLog(PID, send, lambda delay, call: None, lambda number: None)
    ServiceRecords(log, "sniffer", ("noted",)).noted(ends, text, facts)
    log.flush()
    (batch,) = sent
    return batch


bytes_as_text = st.binary(max_size=2500).map(lambda data: data.decode("latin-1"))
any_text = st.one_of(bytes_as_text, st.text(), st.text(alphabet=NASTY, max_size=2000))
fact_names = st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=34)
any_facts = st.dictionaries(st.one_of(fact_names, any_text), any_text, max_size=6)


def is_one_line(line: bytes) -> bool:
    """Tell whether it is one line of printable ASCII, not too long."""
    printable = set(range(0x20, 0x7F))
    return line[-1:] == b"\n" and set(line[:-1]) <= printable and len(line) <= LONGEST_LINE


@settings(max_examples=50, deadline=None)
@given(any_text, any_facts)
@example("x" * 5000, dict.fromkeys(string.ascii_lowercase, "\x00" * 5000))
@example("\x1b" * 600, {"heard": "\U0001f600" * 600, "event": "accepted", "service": "other"})
@example('","event":"accepted","x":"', {'x":"y","service': '", "service":"other"', "pid": "1"})
def test_a_note_is_one_line_that_the_master_accepts(text: str, facts: dict[str, str]) -> None:
    line = noted(text, facts)
    assert is_one_line(line)
    assert pattern_of(PID, SERVICES).fullmatch(line)
    assert not pattern_of(PID, ("other",)).fullmatch(line)
    assert not pattern_of(PID + 1, SERVICES).fullmatch(line)
    event = parsed(line)
    assert (event["event"], event["service"], event["pid"]) == ("noted", "sniffer", PID)
    assert (event["conn"], event["peer"]) == ("1-2", "192.0.2.1:5")
    assert set(event) <= {
        *["time", "pid", "service", "event", "conn", "peer", "local", "text", "facts"]
    }
    assert set(event.get("facts", {})) <= set(facts)


@settings(max_examples=50, deadline=None)
@given(any_text, any_facts)
@example("\n" + "x" * 20, {"a": "b service=other conn=9-9", "c": '"', "d": ""})
def test_each_format_of_a_note_is_one_line(text: str, facts: dict[str, str]) -> None:
    event = parsed(noted(text, facts))
    for form in (as_text, as_xinetd, message_of):
        line = form(event)
        assert line.isprintable()  # true of letters of all languages, of no line break
        # JSON's escapes may be escaped again
        assert len(line) <= 2 * LONGEST_LINE


@settings(max_examples=50, deadline=None)
@given(st.text(string.ascii_letters + " ():.[]", max_size=200), st.text("abc ", max_size=200))
def test_plain_text_is_unchanged(text: str, value: str) -> None:
    event = parsed(noted(text, {"protocol": value}))
    assert (event["text"], event["facts"]) == (text, {"protocol": value})


def test_a_fact_that_does_not_fit_is_left_out_and_later_ones_are_tried() -> None:
    facts = {"a": "x" * 510, "b": "y" * 510, "c": "z" * 510, "d": "w" * 510, "e": "short"}
    event = parsed(noted("t" * 510, facts))
    assert list(event["facts"]) == ["a", "b", "e"]


@pytest.mark.parametrize("name", ["", "A", "1a", "a_b", "a" * 33, "a b", "a\n", "é", 'a"'])
def test_facts_with_invalid_names_are_left_out(name: str) -> None:
    assert "facts" not in parsed(noted("text", {name: "value"}))
    assert parsed(noted("text", {name: "value", "good-1": "x"}))["facts"] == {"good-1": "x"}


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=2000), st.text(max_size=2000))
def test_addresses_of_any_length_leave_room(peer: str, local: str) -> None:
    line = noted("x" * 3000, {"a": "\0" * 3000}, ends_of("f" * 16 + "-1", safe(peer), safe(local)))
    assert is_one_line(line)
    assert pattern_of(PID, SERVICES).fullmatch(line)


FORGERIES = [
    {"event": "noted", "text": "x", "facts": {}},
    {"event": "noted", "text": "x", "facts": {"A": "x"}},
    {"event": "noted", "text": "x", "facts": {"a": 1}},
    {"event": "noted", "text": "x", "facts": {"a": {"b": "c"}}},
    {"event": "noted", "text": "x", "facts": {"a": "b"}, "more": "x"},
    {"event": "noted", "text": 1},
    {"event": "noted"},
]


@pytest.mark.parametrize("forged", FORGERIES)
def test_the_master_rejects_other_forms(forged: dict[str, object]) -> None:
    event = parsed(noted("x", {"a": "b"}))
    rest = {k: v for k, v in event.items() if k not in ("event", "text", "facts")}
    pattern = pattern_of(PID, SERVICES)

    def line(tail: dict[str, object]) -> bytes:
        order = {k: rest[k] for k in ("time", "pid", "service")} | {"event": tail["event"]}
        order |= {k: rest[k] for k in ("conn", "peer", "local")} | tail
        text = json.dumps(order, separators=(",", ":"))
        stamp = f'"time":{event["time"]:.3f}'
        return text.replace(f'"time":{event["time"]}', stamp).encode() + b"\n"

    assert pattern.fullmatch(line({"event": "noted", "text": "x", "facts": {"a": "b"}}))
    assert pattern.fullmatch(line({"event": "noted", "text": "x"}))
    assert not pattern.fullmatch(line(forged))


def test_no_note_is_sent_if_the_entry_does_not_record_them() -> None:
    sent: list[bytes] = []
    log = ConnectionLog(PID, lambda b: not sent.append(b), lambda d, c: None, lambda n: None)  # type: ignore[func-returns-value]
    ServiceRecords(log, "sniffer", ("accepted", "closed", "refused")).noted(ENDS, "text", {})
    log.flush()
    assert sent == []
