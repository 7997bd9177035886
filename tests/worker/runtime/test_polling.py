"""The poller of relays, in a loop of its own and below uvloop: who is told what, and when."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from superd.plugin import Poller
from superd.worker.runtime.loop import WorkerLoop, new_loop
from superd.worker.runtime.polling import EpollPoller, PollingLoop, poller_of

LOOPS = ["uvloop", "asyncio"]
PATIENCE = 10.0

Pair = tuple[socket.socket, socket.socket]


class Waiter:
    """Keeps what it is told of its socket, and does something more."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        self.told: list[int] = []
        self.failures: list[BaseException] = []
        self.act = act

    def ready(self, events: int) -> None:
        self.told.append(events)
        self.act()

    def failed(self, error: BaseException) -> None:
        self.failures.append(error)


class Bench:
    """A loop with its poller; what runs on it is over in time, or the test fails."""

    def __init__(self, kind: str) -> None:
        self.loop: WorkerLoop = new_loop(kind)
        self.poller: Poller = poller_of(self.loop)
        self.over = self.loop.create_future()

    def end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    @contextmanager
    def in_time(self) -> Iterator[None]:
        late: list[bool] = []
        self.loop.call_later(PATIENCE, late.append, True)
        yield
        assert not late, "it was over only when the loop woke up for something else"

    def run(self) -> None:
        with self.in_time():
            self.loop.run_until_complete(asyncio.wait_for(self.over, 2 * PATIENCE))

    def turn(self) -> None:
        """Let everything be told that is ready, and what goes on later go on."""
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))


@pytest.fixture(params=LOOPS)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(request.param)
    yield bench
    bench.loop.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def second_pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_one_is_told_that_it_can_write_and_when_there_is_input(bench: Bench, pair: Pair) -> None:
    ours, theirs = pair
    waiter = Waiter()
    bench.poller.add(ours.fileno(), waiter)
    bench.turn()
    theirs.send(b"x")
    bench.turn()
    theirs.close()
    bench.turn()
    first, second, third = waiter.told
    assert first == select.EPOLLOUT
    assert second == select.EPOLLIN | select.EPOLLOUT
    assert third & select.EPOLLRDHUP


def test_who_has_forgotten_a_socket_is_told_no_more(bench: Bench, pair: Pair) -> None:
    ours, theirs = pair
    waiter = Waiter()
    bench.poller.add(ours.fileno(), waiter)
    bench.poller.again(ours.fileno(), waiter)
    bench.poller.forget(ours.fileno())
    theirs.send(b"x")
    bench.turn()
    assert waiter.told == []


def test_a_socket_that_was_handed_over_is_told_to_who_has_it(bench: Bench, pair: Pair) -> None:
    ours, theirs = pair
    before, after = Waiter(), Waiter()
    bench.poller.add(ours.fileno(), before)
    bench.turn()
    bench.poller.hand_over(ours.fileno(), after)
    theirs.send(b"x")
    bench.turn()
    assert len(before.told) == len(after.told) == 1


def test_who_goes_on_later_is_told_of_input_and_of_nothing_broken(bench: Bench, pair: Pair) -> None:
    """It may have read up to the end by then: an error would be taken for a reset."""
    waiter = Waiter()
    bench.poller.add(pair[0].fileno(), waiter)
    bench.turn()
    bench.poller.again(pair[0].fileno(), waiter)
    bench.turn()
    _, events = waiter.told
    assert events & select.EPOLLIN
    assert events & select.EPOLLRDHUP
    assert not events & (select.EPOLLERR | select.EPOLLHUP)


def test_who_is_to_go_on_twice_has_one_turn(bench: Bench, pair: Pair) -> None:
    waiter = Waiter()
    bench.poller.add(pair[0].fileno(), waiter)
    bench.turn()
    del waiter.told[:]
    bench.poller.again(pair[0].fileno(), waiter)
    bench.poller.again(pair[0].fileno(), waiter)
    bench.turn()
    assert len(waiter.told) == 1


def test_a_mistake_is_told_to_who_made_it_and_the_others_go_on(
    bench: Bench, pair: Pair, second_pair: Pair
) -> None:
    def fail() -> None:
        raise SystemExit

    waiters = Waiter(fail), Waiter(fail)
    for waiter, (ours, _) in zip(waiters, (pair, second_pair), strict=True):
        bench.poller.add(ours.fileno(), waiter)
    bench.turn()
    for waiter, (ours, _) in zip(waiters, (pair, second_pair), strict=True):
        bench.poller.again(ours.fileno(), waiter)
    bench.turn()
    for waiter in waiters:
        assert [type(error) for error in waiter.failures] == [SystemExit] * 2


class Helpless(Waiter):
    """Cannot even be told."""

    def failed(self, error: BaseException) -> None:
        super().failed(error)
        raise MemoryError


def test_who_cannot_be_told_of_a_mistake_leaves_the_others_their_turn(
    bench: Bench, pair: Pair, second_pair: Pair
) -> None:
    def fail() -> None:
        raise MemoryError

    seen: list[object] = []
    bench.loop.set_exception_handler(lambda loop, context: seen.append(context["exception"]))
    waiters = Helpless(fail), Helpless(fail)
    for waiter, (ours, _) in zip(waiters, (pair, second_pair), strict=True):
        bench.poller.add(ours.fileno(), waiter)
    bench.turn()
    assert [len(waiter.failures) for waiter in waiters] == [1, 1]
    assert [type(error) for error in seen] == [MemoryError] * 2


class Replacing(Waiter):
    """Once told, gives the number of another's socket to a new one, unless that has happened to its
    own; `own` is called with the number.
    """

    def __init__(
        self,
        bench: Bench,
        other: socket.socket,
        new: socket.socket,
        taken: list[int],
        own: Callable[[int], object],
    ) -> None:
        super().__init__(self.replace)
        self.bench, self.other, self.new, self.taken, self.own = bench, other, new, taken, own

    def replace(self) -> None:
        if not self.taken:
            number = self.other.fileno()
            self.taken.append(number)
            self.bench.poller.forget(number)
            os.dup2(self.new.fileno(), number)
            self.own(number)


def test_a_new_socket_is_not_told_of_one_that_had_its_number(
    bench: Bench, pair: Pair, second_pair: Pair
) -> None:
    """Whoever is first closes the other, of which epoll has told in the same breath."""
    newcomer, (new, its_peer) = Waiter(), socket.socketpair()
    taken: list[int] = []

    def own(number: int) -> None:
        bench.poller.add(number, newcomer)

    one = Replacing(bench, second_pair[0], new, taken, own)
    other = Replacing(bench, pair[0], new, taken, own)
    bench.poller.add(pair[0].fileno(), one)
    bench.poller.add(second_pair[0].fileno(), other)
    pair[1].shutdown(socket.SHUT_WR)
    second_pair[1].shutdown(socket.SHUT_WR)
    with new, its_peer:
        bench.turn()
    assert len(one.told) + len(other.told) == 1
    assert newcomer.told == [select.EPOLLOUT], "it is told of its own socket, and of that only"


class Busy(Waiter):
    """Sends a byte back for each that comes, for ever."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(self.answer)
        self.sock = sock
        sock.setblocking(False)

    def answer(self) -> None:
        if self.told[-1] & select.EPOLLIN:
            self.sock.send(self.sock.recv(100))


@pytest.fixture
def busy(bench: Bench, pair: Pair) -> tuple[Busy, Busy]:
    """Two whose sockets are never quiet."""
    both = Busy(pair[0]), Busy(pair[1])
    for one in both:
        bench.poller.add(one.sock.fileno(), one)
    pair[0].send(b"x")
    return both


def test_busy_sockets_leave_timers_their_time(bench: Bench, busy: tuple[Busy, Busy]) -> None:
    bench.loop.call_later(0.1, bench.end)
    bench.run()
    assert min(len(one.told) for one in busy) > 10


def test_busy_sockets_leave_others_their_turn(
    bench: Bench, busy: tuple[Busy, Busy], second_pair: Pair
) -> None:
    ours, theirs = second_pair
    bench.loop.add_reader(ours, bench.end)
    bench.loop.call_later(0.05, theirs.send, b"x")
    bench.run()
    assert min(len(one.told) for one in busy) > 10


def test_what_is_to_be_called_soon_is_called_though_sockets_are_busy(
    bench: Bench, busy: tuple[Busy, Busy]
) -> None:
    def count_down() -> None:
        left.pop()
        bench.loop.call_soon(count_down if left else bench.end)

    left = list(range(1000))
    bench.loop.call_soon(count_down)
    bench.run()
    assert not left


def test_a_timer_that_is_set_by_who_was_told_rings_in_time(bench: Bench, pair: Pair) -> None:
    """The loop has gone to sleep for longer."""
    ours, theirs = pair
    waiter = Waiter()
    bench.poller.add(ours.fileno(), waiter)
    bench.turn()
    waiter.act = lambda: bench.loop.call_later(0.01, bench.end)
    bench.loop.call_later(0.05, theirs.send, b"x")
    bench.run()
    assert len(waiter.told) == 2


def test_who_was_told_can_have_something_called_soon(bench: Bench, pair: Pair) -> None:
    ours, theirs = pair
    waiter = Waiter()
    bench.poller.add(ours.fileno(), waiter)
    bench.turn()
    waiter.act = lambda: bench.loop.call_soon(bench.end)
    bench.loop.call_later(0.05, theirs.send, b"x")
    bench.run()
    assert len(waiter.told) == 2


def test_workers_that_only_relay_have_the_loop_that_is_made_for_it() -> None:
    loops = [
        new_loop("auto", only_relays=True),
        new_loop("auto", only_relays=False),
        new_loop("asyncio", only_relays=False),
        new_loop("uvloop", only_relays=True),
    ]
    assert [isinstance(loop, PollingLoop) for loop in loops] == [True, False, True, False]
    for loop in loops:
        loop.close()


def test_who_has_a_number_now_goes_on_whatever_its_last_owner_asks_for(
    bench: Bench, pair: Pair
) -> None:
    ours = pair[0].fileno()
    before, after = Waiter(), Waiter()
    bench.poller.add(ours, before)
    bench.poller.hand_over(ours, after)
    bench.turn()
    bench.poller.again(ours, after)
    bench.poller.again(ours, before)
    bench.turn()
    assert (len(before.told), len(after.told)) == (0, 2)


def test_what_was_told_of_a_relay_is_not_taken_for_the_loops_own(
    bench: Bench, pair: Pair, second_pair: Pair
) -> None:
    """Whoever is first lets the loop have the number of the other, of which epoll has told, too."""
    new, its_peer = socket.socketpair()
    called: list[int] = []
    taken: list[int] = []

    def own(number: int) -> None:
        bench.loop.add_reader(number, called.append, number)

    for peer in (pair[1], second_pair[1]):
        peer.send(b"x")
    for ours, other in ((pair[0], second_pair[0]), (second_pair[0], pair[0])):
        bench.poller.add(ours.fileno(), Replacing(bench, other, new, taken, own))
    with new, its_peer:
        bench.turn()
        assert (len(taken), called) == (1, [])
        its_peer.send(b"x")
        bench.turn()
        assert called
        bench.loop.remove_reader(taken[0])


def test_what_could_not_be_told_is_told_once_it_can(pair: Pair, second_pair: Pair) -> None:
    """One of them ends the round, and epoll tells an edge only once."""

    def end_the_round(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        raise SystemExit

    def fail() -> None:
        raise MemoryError

    with closing(new_loop("asyncio")) as loop:
        loop.set_exception_handler(end_the_round)
        poller = EpollPoller(select.epoll(), loop)
        waiters = Helpless(fail), Helpless(fail)
        for waiter, (ours, _) in zip(waiters, (pair, second_pair), strict=True):
            poller.add(ours.fileno(), waiter)
        with pytest.raises(SystemExit):
            poller.poll()
        assert sum(len(waiter.told) for waiter in waiters) == 1
        for waiter in waiters:
            waiter.act = lambda: None
        poller.poll()
        poller.close()
    assert sum(len(waiter.told) for waiter in waiters) == 3, "both are told, one once more"


def test_the_loop_can_be_stopped_by_who_was_told(bench: Bench, pair: Pair) -> None:
    ours, theirs = pair
    waiter = Waiter()
    bench.poller.add(ours.fileno(), waiter)
    bench.turn()
    waiter.act = bench.loop.stop
    bench.loop.call_later(0.05, theirs.send, b"x")
    with bench.in_time():
        bench.loop.run_forever()
    assert len(waiter.told) == 2
