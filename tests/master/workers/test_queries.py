"""Queries to workers: their answers are checked and combined, and awaited for a limited time."""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from superd.admission.bans import BanTable
from superd.master.bans import Bans
from superd.master.logs.log import Log
from superd.master.workers.messages import MessageReader
from superd.master.workers.queries import ConnectionsQuery, KillQuery, Query, TrafficQuery
from superd.observe.listing import MAX_ROW_SIZE, MAX_ROWS
from tests.master.children import child_of

ROW = {
    "id": "1-2f", "service": "echo", "peer": "192.0.2.1:7", "local": "tcp://192.0.2.2:7",
    "age": 0.5, "in": 5, "out": None, "state": "open", "target": "",
}  # fmt: skip


class Workers:
    """Two workers that send what a test wants, and the master's message reader."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.selector = selectors.DefaultSelector()
        self.reader = MessageReader(
            self.selector, log, Bans(None, log, BanTable()), lambda child, what: None
        )
        self.channels: list[socket.socket] = []
        self.slots: list[Any] = []
        for pid in (101, 102):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            self.channels.append(theirs)
            child = child_of(ours, "echo", pid=pid, ready=True)
            self.reader.listen_to(child)
            slot = SimpleNamespace(child=child, generation=SimpleNamespace(number=3))
            self.slots.append(slot)
        self.replies: list[Any] = []

    def ask(self, query: Query) -> None:
        query.begin(lambda line: self.replies.append(json.loads(line)))

    def received(self, number: int) -> dict[str, Any]:
        """Return the query that a worker has received."""
        request: dict[str, Any] = json.loads(self.channels[number].recv(65536))
        return request

    def send(self, number: int, content: object, *, is_last: bool = False, inquiry: Any) -> None:
        message = {"kind": "answer", "content": content, "is_last": is_last, "inquiry": inquiry}
        self.channels[number].send(json.dumps(message).encode())
        for key, _ in self.selector.select(0):
            key.data()

    def close(self) -> None:
        for slot, channel in zip(self.slots, self.channels, strict=True):
            channel.close()
            slot.child.channel.close()
        self.selector.close()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    log = Log([str(tmp_path / "log")], "text")
    one = Workers(log)
    yield one
    one.close()
    log.close()


def test_a_query_is_answered_once_all_workers_have_answered_in_full(workers: Workers) -> None:
    query = ConnectionsQuery(workers.slots, None)
    workers.ask(query)
    asked = workers.received(0)
    assert asked == {"kind": "connections", "inquiry": query.number, "service": None}
    workers.send(0, [ROW], inquiry=query.number)
    workers.send(1, None, is_last=True, inquiry=query.number)
    workers.send(0, [{**ROW, "id": "1-30"}], inquiry=query.number)
    workers.send(0, 7, inquiry=query.number)
    assert not workers.replies
    workers.send(0, None, is_last=True, inquiry=query.number)
    [answer] = workers.replies
    assert [(row["id"], row["worker"]) for row in answer["connections"]] == [
        ("1-2f", 101),
        ("1-30", 101),
    ]
    assert (answer["untold"], answer["left-out"]) == ([], 7)
    assert not any(slot.child.queries for slot in workers.slots)


def test_a_worker_that_does_not_answer_in_time_is_named_and_its_answer_ignored(
    workers: Workers,
) -> None:
    query = ConnectionsQuery(workers.slots, None)
    workers.ask(query)
    workers.send(0, None, is_last=True, inquiry=query.number)
    query.reply_now()
    assert workers.replies[0]["untold"] == [{"worker": 102, "generation": 3}]
    workers.send(1, [ROW], inquiry=query.number)
    assert not workers.slots[1].child.has_closed
    assert len(workers.replies) == 1


def test_a_worker_that_ends_is_not_waited_for(workers: Workers) -> None:
    query = ConnectionsQuery(workers.slots, None)
    workers.ask(query)
    workers.send(0, None, is_last=True, inquiry=query.number)
    assert not workers.replies
    workers.reader.read_rest(workers.slots[1].child)
    assert workers.replies == [{"connections": [], "untold": [], "left-out": 0}]


def test_a_worker_whose_channel_is_full_is_named_at_once(workers: Workers) -> None:
    child = workers.slots[0].child
    while child.send("nothing", of="x" * 30_000):
        pass
    query = KillQuery(workers.slots, "1-2", workers.log)
    workers.ask(query)
    workers.send(1, False, inquiry=query.number)
    workers.send(1, None, is_last=True, inquiry=query.number)
    [answer] = workers.replies
    text = "there is no connection 1-2, as far as is known: worker 101 did not answer"
    assert answer == {"error": text}


def wrong_rows() -> list[object]:
    """Return invalid lists of a worker's connections."""
    changes: list[dict[str, object]] = [
        {"id": "x"}, {"id": 5}, {"service": "other"}, {"service": []}, {"peer": 5},
        {"peer": "x" * 600}, {"local": None}, {"age": "old"}, {"age": -1.0}, {"age": 1e300},
        {"in": True}, {"in": -1}, {"out": 1 << 64}, {"out": 0.5}, {"state": "odd"}, {"state": {}},
        {"target": 1}, {"more": 1},
    ]  # fmt: skip
    missing = {key: value for key, value in ROW.items() if key != "target"}
    contents: list[object] = [[{**ROW, **change}] for change in changes]
    return [*contents, [missing], [5], "rows", 0, -5, 10**4000, True, None, {}, [[]]]


@pytest.mark.parametrize("content", wrong_rows(), ids=str)
def test_an_invalid_list_of_connections_ends_the_worker_and_nothing_else(
    workers: Workers, content: object
) -> None:
    query = ConnectionsQuery(workers.slots, None)
    workers.ask(query)
    workers.send(0, content, inquiry=query.number)
    assert workers.slots[0].child.has_closed
    workers.send(1, [ROW], inquiry=query.number)
    assert not workers.slots[1].child.has_closed


@pytest.mark.parametrize(
    "content",
    [5, None, [], {"other": [1, 1]}, {"echo": [1]}, {"echo": [1, -1]}, {"echo": [True, 1]},
     {"echo": [1, 1 << 64]}, {"echo": 1}],
    ids=str,
)  # fmt: skip
def test_invalid_traffic_ends_the_worker(workers: Workers, content: object) -> None:
    for slot in workers.slots:
        slot.number = 0
    query = TrafficQuery(workers.slots, None, [])  # type: ignore[arg-type]
    workers.ask(query)
    workers.send(0, content, inquiry=query.number)
    assert workers.slots[0].child.has_closed


@pytest.mark.parametrize("content", [0, None, "yes"])
def test_an_answer_to_a_kill_that_is_not_true_or_false_ends_the_worker(
    workers: Workers, content: object
) -> None:
    query = KillQuery(workers.slots, "1-2", workers.log)
    workers.ask(query)
    workers.send(0, content, inquiry=query.number)
    assert workers.slots[0].child.has_closed


@pytest.mark.parametrize("number", ["1", None, [], 1.5])
def test_an_answer_without_a_number_ends_the_worker(workers: Workers, number: object) -> None:
    workers.send(0, None, inquiry=number)
    assert workers.slots[0].child.has_closed


def test_a_worker_cannot_fill_the_memory_of_the_master(workers: Workers) -> None:
    query = ConnectionsQuery(workers.slots, None)
    workers.ask(query)
    child = workers.slots[0].child
    sent = 0
    longest = {**ROW, "peer": "\U0001f600" * 512, "local": "\U0001f600" * 512}
    while not child.has_closed and sent <= MAX_ROWS:
        child.allowance = 512
        workers.send(0, [longest] * 4, inquiry=query.number)
        sent += 4
    assert child.has_closed
    assert sum(map(len, query.rows)) <= MAX_ROWS * MAX_ROW_SIZE
