"""What a worker says is believed as far as its own services go; anything else is its end only."""

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
from superd.master.workers.messages import Hearing

BAN = {"kind": "ban", "service": "echo", "network": "192.0.2.1", "seconds": 60, "reason": "x"}


def refuse(child: Child, what: object) -> NoReturn:
    raise ValueError(f"worker {child.pid} may not ask for {what}")


@pytest.fixture
def hearing(tmp_path: Path) -> Iterator[tuple[Hearing, Child, socket.socket]]:
    """The master's ear, a worker that it listens to, and the worker's end of the line."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    log = Log([str(tmp_path / "log")], "text")
    with ours, theirs, selectors.DefaultSelector() as selector:
        child = Child(123, ours, 0.0, frozenset(["echo"]))
        yield Hearing(selector, log, Bans(None, log, BanTable()), refuse), child, theirs
    log.close()


def test_a_plugin_of_the_worker_may_ban(hearing: tuple[Hearing, Child, socket.socket]) -> None:
    ear, child, worker = hearing
    worker.send(json.dumps(BAN).encode())
    ear.hear_last_words(child)
    assert not child.has_closed
    (ban,) = ear.bans.listed()
    assert (ban["network"], ban["by"]) == ("192.0.2.1", "service echo")


@pytest.mark.parametrize("question", [{"what": "metrics"}, {"what": []}, {}, {"why": 1}], ids=str)
def test_a_question_that_a_worker_must_not_ask_ends_it(
    hearing: tuple[Hearing, Child, socket.socket], question: dict[str, Any]
) -> None:
    ear, child, worker = hearing
    worker.send(json.dumps({"kind": "observe", **question}).encode())
    ear.hear_last_words(child)
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
def test_a_message_that_is_none_ends_the_worker_and_nothing_else(
    hearing: tuple[Hearing, Child, socket.socket], change: dict[str, Any]
) -> None:
    ear, child, worker = hearing
    worker.send(json.dumps(BAN | change).encode())
    ear.hear_last_words(child)
    assert child.has_closed
    assert ear.bans.listed() == []
