"""A worker's channel to the master: every message arrives whole, and none ever blocks a worker."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superd.admission.scoreboard import LOST
from superd.observe.records import LONGEST_DETAIL, LONGEST_TEXT, Record, Threshold, decoded
from superd.worker.channel import MAX_MESSAGE_SIZE, Channel
from tests.conftest import Start
from tests.support.clients import connect_and_receive
from tests.support.harness import make_plugin
from tests.support.inside import INSIDE, run_inside

Ends = tuple[Channel, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A channel, and the master's end of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        yield Channel(theirs, Threshold("debug")), ours


def receive(master: socket.socket) -> Record:
    """Return the log record that the master receives."""
    data = master.recv(MAX_MESSAGE_SIZE)
    message = json.loads(data)
    assert message.pop("kind") == "log"
    return decoded(message, pid=1)


TEXTS = ["", "x", "x" * 100_000, "\U0001f600" * 50_000, "\udc80" * 50_000, '"\\\0\n' * 20_000]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: f"{text[:2]!a} x {len(text)}")
def test_a_record_of_any_length_and_any_characters_arrives_as_a_message(
    ends: Ends, text: str
) -> None:
    channel, master = ends
    channel.log(Record("error", text, detail=(text,) * LONGEST_DETAIL))
    record = receive(master)
    assert record.message[:100] == text[:100]
    assert len(record.message) <= LONGEST_TEXT
    channel.failed(1, text)
    assert json.loads(master.recv(MAX_MESSAGE_SIZE))["text"][:100] == text[:100]


@given(st.text(alphabet=st.characters(codec=None)), st.lists(st.text(), max_size=LONGEST_DETAIL))
def test_what_is_sent_is_what_is_receive(message: str, detail: list[str]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        sent = Record("info", message, service="echo", detail=tuple(detail))
        Channel(theirs, Threshold("debug")).log(sent)
        record = receive(ours)
    assert (record.level, record.message, record.service) == ("info", message, "echo")
    assert record.detail == tuple(detail)


def test_a_full_channel_drops_records_and_reports_how_many(ends: Ends) -> None:
    channel, master = ends
    sent = 0
    while not channel.dropped:
        channel.log(Record("info", f"number {sent} " + "x" * 1000))
        sent += 1
    for _ in range(9):
        channel.log(Record("info", "dropped"))
    for number in range(sent - 1):
        assert receive(master).message.startswith(f"number {number} ")
    channel.log(Record("info", "after"))
    assert receive(master).message == "after (10 lines lost)"
    channel.log(Record("info", "later"))
    assert receive(master).message == "later"


def test_lost_messages_are_counted_where_the_master_sees_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    counts = [0] * (LOST + 1)
    with ours, theirs:
        channel = Channel(theirs, Threshold("debug"), counts)
        while not channel.dropped:
            channel.log(Record("info", "x" * 1000))
        assert not channel.events(b"one\ntwo\n" * 100)
    assert counts[LOST] == sum(counts) == 201


def test_a_master_that_has_exited_is_not_an_error(ends: Ends) -> None:
    channel, master = ends
    master.close()
    channel.ready()
    channel.log(Record("info", "no process reads this"))
    channel.failed(1, "nor this")


def test_a_client_whose_bytes_end_up_in_a_huge_error_costs_no_more_than_its_connection(
    start_superd: Start, tmp_path: Path
) -> None:
    superd = start_superd(
        """
        [service.inside]
        plugin = "inside"
        listen = "tcp://127.0.0.1:0"
        """,
        env=make_plugin(tmp_path / "plugins", "inside", INSIDE),
    )
    [worker] = superd.workers()
    for text in ("'\\0' * 1_000_000", "chr(0x1f600) * 300_000", "'\\n' * 300_000"):
        assert (
            connect_and_receive(superd.address("inside"), f"raise ValueError({text})".encode())[1]
            == "reset"
        )
    superd.wait_for_log("ValueError: ")
    assert run_inside(superd, "inside", "result = 1") == 1
    assert superd.workers() == [worker]
    assert "an invalid message" not in superd.log()
    assert all(len(entry) < 3 * LONGEST_TEXT for entry in superd.log().splitlines())
