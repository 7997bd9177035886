"""The acceptor: which errors of accept(2) it skips, and which make it pause."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from types import SimpleNamespace
from typing import Any

import pytest

from superd.admission.gate import NO_SOURCE, Gate, Ticket
from superd.admission.ledger import Lock
from superd.admission.memory import nameless_file
from superd.admission.rules import Rules
from superd.admission.scoreboard import Count
from superd.net.addresses import Address, Transport
from superd.observe.records import FloodGate, Record
from superd.worker.accept.acceptor import (
    MAX_BATCH,
    MAX_ERROR_PAUSE,
    TRANSIENT_ACCEPT_ERRNOS,
    Acceptor,
)

PAUSING = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EINVAL, errno.EBADF]


class Listener:
    """A listening socket whose accepts have the outcomes that a test lists."""

    family, type, proto = socket.AF_INET, socket.SOCK_STREAM, 0

    def __init__(self, *outcomes: int | str) -> None:
        self.outcomes = deque(outcomes)
        self.is_closed = False
        self.event = os.eventfd(1)  # always readable, as if a client were always pending

    def fileno(self) -> int:
        return self.event

    def __del__(self) -> None:
        os.close(self.event)

    def _accept(self) -> tuple[int, Any]:
        if not self.outcomes:
            raise BlockingIOError(errno.EAGAIN, "")
        outcome = self.outcomes.popleft()
        if isinstance(outcome, int):
            raise OSError(outcome, os.strerror(outcome))
        return len(self.outcomes), (outcome, 1)

    def close(self) -> None:
        self.is_closed = True


class Loop:
    """Notes the callback of the polled listener, and the calls that are scheduled."""

    def __init__(self) -> None:
        self.polled: Callable[[], Any] | None = None
        self.later: list[tuple[float, Callable[[], Any]]] = []

    def add_reader(self, _: Listener, callback: Callable[[], Any]) -> None:
        self.polled = callback

    def remove_reader(self, _: Listener) -> None:
        self.polled = None

    def call_later(self, delay: float, callback: Callable[[], Any]) -> SimpleNamespace:
        self.later.append((delay, callback))
        return SimpleNamespace(cancel=lambda: None)


class Bench:
    """An acceptor with doubles around it."""

    def __init__(self, *outcomes: int | str) -> None:
        self.listener, self.loop = Listener(*outcomes), Loop()
        self.log: list[Record] = []
        self.dispatched: list[str] = []
        context: Any = SimpleNamespace(
            loop=self.loop,
            flood_gate=FloodGate(self.log.append),
            check_listeners=lambda: None,
            check_descriptors=lambda: None,
            heartbeat=SimpleNamespace(wants_beat=False),
        )
        entry = SimpleNamespace(backlog=4096)
        self.counts = memoryview(bytearray(8 * len(Count))).cast("Q")
        rules = Rules(None, None, None)
        gate = Gate(
            rules,
            (),
            Lock(nameless_file("test")),
            self.counts,
            self.counts,
            waits=False,
            clock=time.monotonic_ns,
        )
        service: Any = SimpleNamespace(
            name="test",
            counts=self.counts,
            entry=entry,
            gate=gate,
            waiting=set(),
            scope=Context(),
        )
        listener: Any = self.listener
        make: Any = lambda *_: None  # noqa: E731
        address = Address(Transport.TCP, "127.0.0.1")
        self.acceptor = Acceptor(context, service, address, listener, self.dispatch, make)
        self.acceptor.start()

    def dispatch(self, _: Any, sockaddr: tuple[str, int], ticket: Ticket, _local: str) -> None:
        assert ticket == NO_SOURCE
        self.dispatched.append(sockaddr[0])


@pytest.mark.parametrize("number", sorted(TRANSIENT_ACCEPT_ERRNOS), ids=errno.errorcode.__getitem__)
def test_an_error_of_one_connection_is_skipped(number: int) -> None:
    bench = Bench("first", number, "second")
    bench.acceptor.accept()
    assert bench.dispatched == ["first", "second"]
    assert bench.loop.polled is not None
    assert errno.errorcode[number] in bench.log[0].message


@pytest.mark.parametrize("number", PAUSING, ids=errno.errorcode.__getitem__)
def test_any_other_error_pauses_and_leaves_pending_clients_in_the_backlog(number: int) -> None:
    bench = Bench("first", number, "second")
    bench.acceptor.accept()
    assert bench.dispatched == ["first"]
    assert bench.loop.polled is None
    assert not bench.listener.is_closed
    assert "cannot accept, clients wait" in bench.log[0].message
    ((_, resume),) = bench.loop.later
    resume()
    assert bench.loop.polled is not None
    bench.acceptor.accept()
    assert bench.dispatched == ["first", "second"]


def test_pauses_grow_to_a_quarter_of_a_second_and_start_again_after_a_success() -> None:
    bench = Bench(*[errno.EMFILE] * 5, "accepted", errno.EMFILE)
    for _ in range(6):
        bench.acceptor.accept()
    delays = [delay for delay, _ in bench.loop.later]
    assert delays == [0.05, 0.1, 0.2, MAX_ERROR_PAUSE, MAX_ERROR_PAUSE, 0.05]
    assert MAX_ERROR_PAUSE == 0.25


def test_a_flood_is_accepted_in_batches_whatever_it_consists_of() -> None:
    flood: list[int | str] = ["client", errno.ECONNABORTED] * MAX_BATCH
    bench = Bench(*flood)
    assert bench.acceptor.accept()
    assert len(bench.dispatched) == MAX_BATCH // 2
    assert len(bench.listener.outcomes) == len(flood) - MAX_BATCH


def test_stop_accepts_all_pending_clients_and_closes_the_listener() -> None:
    bench = Bench(*["client"] * 1000)
    bench.acceptor.stop()
    assert len(bench.dispatched) == 1000
    assert bench.listener.is_closed
    assert bench.loop.polled is None
    bench.acceptor.stop()
    bench.acceptor.start()
    assert bench.loop.polled is None


def test_a_pause_does_not_outlive_the_stop() -> None:
    bench = Bench(errno.EMFILE)
    bench.acceptor.accept()
    bench.acceptor.stop()
    ((_, resume),) = bench.loop.later
    resume()
    assert bench.loop.polled is None


def test_a_listener_that_another_process_made_blocking_does_not_block() -> None:
    """The real socket, as the master makes it: SO_RCVTIMEO bounds the wait."""
    from superd.net.receive_timeout import ACCEPT_TIMEOUT

    bench = Bench()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, ACCEPT_TIMEOUT)
        assert os.get_blocking(listener.fileno())
        real: Any = listener
        bench.acceptor.listener = real
        began = time.monotonic()
        assert not bench.acceptor.accept()
        assert time.monotonic() - began < 5  # it is 10 ms
