"""Messages of workers: believed only about their own services; an invalid one ends the worker."""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from superd.admission.bans import BanTable
from superd.master.bans import Bans
from superd.master.logs.log import Log
from superd.master.workers.child import Child
from superd.master.workers.messages import MessageReader
from tests.master.children import child_of

BAN = {"kind": "ban", "service": "echo", "network": "192.0.2.1", "seconds": 60, "reason": "x"}


Reading = tuple[MessageReader, Child, socket.socket]


def refuse(child: Child, what: object) -> NoReturn:
    raise ValueError(f"worker {child.pid} may not ask for {what}")


@pytest.fixture
def messages(tmp_path: Path) -> Iterator[Reading]:
    """A message reader, a worker that it reads from, and the worker's end of the channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    log = Log([str(tmp_path / "log")], "text")
    with ours, theirs, selectors.DefaultSelector() as selector:
        child = child_of(ours, "echo")
        yield MessageReader(selector, log, Bans(None, log, BanTable()), refuse), child, theirs
    log.close()


def test_a_service_of_the_worker_may_ban(
    messages: Reading,
) -> None:
    reader, child, worker = messages
    worker.send(json.dumps(BAN).encode())
    reader.read_rest(child)
    assert not child.has_closed
    (ban,) = reader.bans.listed()
    assert (ban["network"], ban["by"]) == ("192.0.2.1", "service echo")


FILE = {
    "kind": "appended-file", "service": "echo", "number": 5, "path": "/var/log/x", "flags": 1,
    "mode": 0o640,
}  # fmt: skip


def test_files_of_plugins_are_taken_until_the_worker_is_confined(messages: Reading) -> None:
    reader, child, worker = messages
    for message in (FILE, {"kind": "confined"}, {**FILE, "path": "/etc/shadow"}):
        worker.send(json.dumps(message).encode())
    reader.read_rest(child)
    assert child.has_closed
    assert [file.path for file in child.files] == ["/var/log/x"]


def test_a_worker_that_is_ready_is_confined(messages: Reading) -> None:
    reader, child, worker = messages
    for message in ({"kind": "ready"}, FILE):
        worker.send(json.dumps(message).encode())
    reader.read_rest(child)
    assert child.has_closed
    assert not child.files


@pytest.mark.parametrize(
    "change",
    [{"service": "other"}, {"path": 5}, {"number": -1}, {"flags": True}, {"mode": "x"}, {"x": 1}],
    ids=str,
)
def test_an_invalid_file_ends_the_worker(messages: Reading, change: dict[str, Any]) -> None:
    reader, child, worker = messages
    worker.send(json.dumps({**FILE, **change}).encode())
    reader.read_rest(child)
    assert child.has_closed
    assert not child.files


@pytest.mark.parametrize("query", [{"what": "metrics"}, {"what": []}, {}, {"why": 1}], ids=str)
def test_a_query_that_a_worker_may_not_make_ends_it(
    messages: Reading, query: dict[str, Any]
) -> None:
    reader, child, worker = messages
    worker.send(json.dumps({"kind": "observe", **query}).encode())
    reader.read_rest(child)
    assert child.has_closed


@pytest.mark.parametrize(
    "change",
    [
        {"service": "other"},
        {"network": "here"},
        {"network": 5},
        {"seconds": 10**400},
        {"seconds": "x"},
        {"seconds": []},
        {"reason": 5},
        {"more": 1},
        {"kind": "unknown"},
    ],
    ids=str,
)
def test_an_invalid_message_ends_the_worker_and_nothing_else(
    messages: Reading, change: dict[str, Any]
) -> None:
    reader, child, worker = messages
    worker.send(json.dumps(BAN | change).encode())
    reader.read_rest(child)
    assert child.has_closed
    assert reader.bans.listed() == []
