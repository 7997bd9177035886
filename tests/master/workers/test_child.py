"""The master's record of its workers: messages, reaping, throttled starts."""

from __future__ import annotations

import array
import contextlib
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from typing import NoReturn

import pytest

from superd.master.workers.child import ALLOWANCE, Child, Throttle, reap
from superd.process.forking import describe_exit, fork_child, reset_signals
from superd.process.isolated import run_isolated
from superd.worker.channel import MAX_MESSAGE_SIZE
from tests.master.children import child_of
from tests.support.harness import until
from tests.support.proc import descriptors, zombies

NOBODY = 65534
PID = 123


@pytest.fixture
def pair() -> Iterator[tuple[Child, socket.socket]]:
    """The master's record of a worker that does not run, and the worker's end of its channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield child_of(ours, "echo", "e.2", pid=PID), theirs


def test_messages_arrive_in_order_and_complete(pair: tuple[Child, socket.socket]) -> None:
    child, worker = pair
    for number in range(5):
        worker.send(json.dumps({"kind": "log", "n": number}).encode())
    messages = [message for message in child.messages() if isinstance(message, dict)]
    assert [message["n"] for message in messages] == list(range(5))
    assert not child.has_closed


def event(pid: int = PID, service: str = "echo", peer: str = "127.0.0.1:5") -> bytes:
    start = f'{{"time":1700000000.123,"pid":{pid},"service":"{service}","event":"refused"'
    return f'{start},"peer":"{peer}","local":"tcp://127.0.0.1:7","reason":"access"}}\n'.encode()


@pytest.mark.parametrize(
    "batch", [event(), event() * 100, event(service="e.2"), event(peer="[::1%lo]:5")]
)
def test_a_workers_own_events_are_passed_on_unchanged(
    pair: tuple[Child, socket.socket], batch: bytes
) -> None:
    child, worker = pair
    worker.send(batch)
    assert list(child.messages()) == [batch]


@pytest.mark.parametrize(
    "batch",
    [
        event(pid=124),
        event(pid=1234),
        event(service="web"),
        event(service="eX2"),
        event() + event(service="web"),
        event()[:-1],
        event() + b"\n",
        event().replace(b"1700000000.123", b"1"),
        event(peer="a\nb"),
        event(peer="a\x1b[2J"),
        event(peer="\x85"),
        event(peer="é"),
        event(peer="x" * 3000),
        event(peer='","service":"web'),
        b'{"time"',
    ],
)
def test_events_of_other_workers_or_that_could_forge_a_line_are_refused(
    pair: tuple[Child, socket.socket], batch: bytes
) -> None:
    child, worker = pair
    worker.send(batch)
    with pytest.raises(ValueError, match="events of another worker or service"):
        list(child.messages())


def test_a_batch_of_a_megabyte_is_refused(pair: tuple[Child, socket.socket]) -> None:
    child, worker = pair
    worker.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    batch = event() * ((1 << 20) // len(event()))
    with contextlib.suppress(OSError):  # if the system allows no such buffer
        worker.send(batch)
        with pytest.raises(ValueError, match="events of another worker or service"):
            list(child.messages())
    worker.send(batch[: MAX_MESSAGE_SIZE + 100])
    with pytest.raises(ValueError, match="events of another worker or service"):
        list(child.messages())


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00",
        b"\xff" * 100,
        b"{",
        b'{"kind": "log"',
        b"[]",
        b"1",
        b"null",
        b'"kind"',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"9" * 60_000,
        os.urandom(50_000),
    ],
    ids=range(12),
)
def test_an_invalid_message_is_refused(pair: tuple[Child, socket.socket], garbage: bytes) -> None:
    child, worker = pair
    worker.send(garbage)
    with pytest.raises(ValueError, match="not"):
        list(child.messages())


def test_a_message_that_is_too_long_is_refused(pair: tuple[Child, socket.socket]) -> None:
    child, worker = pair
    worker.send(json.dumps({"kind": "x" * MAX_MESSAGE_SIZE}).encode())
    with pytest.raises(ValueError, match="not JSON"):
        list(child.messages())


def test_a_flood_is_read_only_up_to_the_allowance(
    pair: tuple[Child, socket.socket],
) -> None:
    child, worker = pair
    read = 0
    while child.allowance:
        with contextlib.suppress(BlockingIOError):
            worker.send(b"{}")
        read += len(list(child.messages()))
    assert read == ALLOWANCE
    worker.send(b"{}")
    assert list(child.messages()) == []
    child.allowance = ALLOWANCE
    assert list(child.messages()) == [{}]


def test_one_allowance_reads_everything_that_fits_into_a_channel(
    pair: tuple[Child, socket.socket],
) -> None:
    child, worker = pair
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            worker.send(b"{}")
            sent += 1
    worker.close()
    assert len(list(child.messages())) == sent
    assert child.has_closed


def test_a_closed_channel_is_noticed(pair: tuple[Child, socket.socket]) -> None:
    child, worker = pair
    worker.send(b"{}")
    worker.shutdown(socket.SHUT_RDWR)
    assert list(child.messages()) == [{}]
    assert child.has_closed


def test_descriptors_passed_by_a_worker_are_not_received(
    pair: tuple[Child, socket.socket],
) -> None:
    child, worker = pair
    before = descriptors(os.getpid())
    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
    for _ in range(100):
        worker.sendmsg([b"{}"], passed)
        assert list(child.messages()) == [{}]
    assert len(descriptors(os.getpid())) == len(before)


def pausing(worker: socket.socket) -> NoReturn:
    """A worker that only waits, for a minute at most in case the test fails."""
    reset_signals()
    signal.alarm(60)
    worker.send(b"{}")
    while True:
        signal.pause()


def exit_codes_of(pids: set[int]) -> dict[int, int]:
    """Reap until all of `pids` have ended; return their exit codes."""
    ended: dict[int, int] = {}

    def all_have_ended() -> bool:
        ended.update(reap())
        return pids <= set(ended)

    until(all_have_ended, "the end of all children")
    return {pid: ended[pid] for pid in pids}


@pytest.mark.parametrize("number", [50, pytest.param(1000, marks=pytest.mark.soak)])
def test_children_killed_at_once_leave_no_zombie(number: int) -> None:
    lines = dict(fork_child(pausing) for _ in range(number))
    for pid in lines:
        os.kill(pid, signal.SIGKILL)
    codes = exit_codes_of(set(lines))
    assert set(codes.values()) == {-signal.SIGKILL}
    assert not set(lines) & set(zombies(os.getpid()))
    for sock in lines.values():
        sock.close()


@pytest.mark.parametrize("number", [50, pytest.param(1000, marks=pytest.mark.soak)])
def test_a_signal_right_after_the_fork_ends_the_child(number: int) -> None:
    for _ in range(number):
        pid, sock = fork_child(pausing)
        os.kill(pid, signal.SIGTERM)
        assert exit_codes_of({pid}) == {pid: -signal.SIGTERM}
        sock.close()


def test_the_first_of_two_children_is_reaped_while_the_other_can_still_be_signalled() -> None:
    lines = dict(fork_child(pausing) for _ in range(2))
    for pid in lines:
        os.kill(pid, signal.SIGKILL)
    until(lambda: set(lines) <= set(zombies(os.getpid())), "two zombies")
    ends = (end for end in reap() if end[0] in lines)
    first, _ = next(ends)
    (other,) = set(lines) - {first}
    os.kill(other, signal.SIGTERM)  # if it were reaped, this would raise or hit another process
    assert next(ends)[0] == other
    for sock in lines.values():
        sock.close()


def fork_without_permission() -> list[object]:
    """Return the error of a failing fork, and its leftover descriptors and blocked signals."""
    if os.geteuid() == 0:
        os.setresuid(NOBODY, NOBODY, NOBODY)  # root may have any number of processes
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    before = len(descriptors(os.getpid()))
    try:
        fork_child(pausing)
    except OSError as error:
        left = len(descriptors(os.getpid())) - before
        return [error.strerror, left, len(signal.pthread_sigmask(signal.SIG_BLOCK, []))]
    return []


def test_a_fork_that_fails_leaves_no_descriptor_open_and_no_signal_blocked() -> None:
    outcome = run_isolated({"fork": fork_without_permission})["fork"]
    assert outcome.result == ["Resource temporarily unavailable", 0, 0], outcome.failure


def test_the_end_of_a_worker_is_described() -> None:
    assert describe_exit(0) == "ended with code 0"
    assert describe_exit(-9) == "was ended by SIGKILL"
    assert describe_exit(-40) == "was ended by signal 40"


def starts_within(seconds: float, *, was_ready: bool, life: float = 0.1) -> int:
    """Return how many workers start if each dies `life` seconds after its start."""
    throttle = Throttle()
    now, starts = 1000.0, 0
    while now < 1000.0 + seconds:
        starts += 1
        now += life
        now += throttle.delay(now, was_ready=was_ready)
    return starts


def test_a_worker_that_cannot_start_is_retried_ten_times_a_minute_at_most() -> None:
    assert 3 <= starts_within(60, was_ready=False, life=0.01) <= 10
    assert starts_within(600, was_ready=False, life=0.01) <= 20


def test_a_worker_that_was_ready_is_replaced_at_once_a_hundred_times() -> None:
    throttle = Throttle()
    assert [throttle.delay(1000.0, was_ready=True) for _ in range(100)] == [0.0] * 100
    assert throttle.delay(1000.0, was_ready=True) == 1.0


def test_replacements_of_workers_that_keep_dying_are_throttled() -> None:
    assert starts_within(600, was_ready=True, life=0.01) <= 100 + 600 * (Throttle.REFILL + 1)


def test_a_throttle_recovers_after_a_worker_was_ready() -> None:
    throttle = Throttle()
    assert [throttle.delay(1.0, was_ready=False) for _ in range(4)] == [1.0, 2.0, 4.0, 8.0]
    assert throttle.delay(2.0, was_ready=True) == 0.0
    assert throttle.delay(3.0, was_ready=False) == 1.0


def test_a_delay_is_a_minute_at_most_however_often_a_start_failed() -> None:
    throttle = Throttle()
    delays = [throttle.delay(time.monotonic(), was_ready=False) for _ in range(5000)]
    assert max(delays) == delays[-1] == Throttle.MAX_DELAY
