"""The poller of relays, in asyncio's loop and beside uvloop: which events it delivers, and when."""

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
TIMEOUT = 10.0  # seconds

Pair = tuple[socket.socket, socket.socket]


class FakeRelay:
    """Keeps the events of its socket, and calls `act` for each."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        self.events: list[int] = []
        self.failures: list[BaseException] = []
        self.act = act

    def ready(self, events: int) -> None:
        self.events.append(events)
        self.act()

    def failed(self, error: BaseException) -> None:
        self.failures.append(error)


class Bench:
    """A loop with its poller; what runs on it ends in time, or the test fails."""

    def __init__(self, kind: str) -> None:
        self.loop: WorkerLoop = new_loop(kind)
        self.poller: Poller = poller_of(self.loop)
        self.done = self.loop.create_future()

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    @contextmanager
    def in_time(self) -> Iterator[None]:
        late: list[bool] = []
        self.loop.call_later(TIMEOUT, late.append, True)
        yield
        assert not late, "it ended only when the loop woke up for something else"

    def run(self) -> None:
        with self.in_time():
            self.loop.run_until_complete(asyncio.wait_for(self.done, 2 * TIMEOUT))

    def turn(self) -> None:
        """Deliver all events that are ready, and run what was put off."""
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


def test_a_relay_is_called_when_it_can_write_and_when_there_is_input(
    bench: Bench, pair: Pair
) -> None:
    ours, theirs = pair
    relay = FakeRelay()
    bench.poller.add(ours.fileno(), relay)
    bench.turn()
    theirs.send(b"x")
    bench.turn()
    theirs.close()
    bench.turn()
    first, second, third = relay.events
    assert first == select.EPOLLOUT
    assert second == select.EPOLLIN | select.EPOLLOUT
    assert third & select.EPOLLRDHUP


def test_a_forgotten_socket_has_no_more_events(bench: Bench, pair: Pair) -> None:
    ours, theirs = pair
    relay = FakeRelay()
    bench.poller.add(ours.fileno(), relay)
    bench.poller.again(ours.fileno(), relay)
    bench.poller.forget(ours.fileno())
    theirs.send(b"x")
    bench.turn()
    assert relay.events == []


def test_events_of_a_socket_that_was_handed_over_go_to_its_new_relay(
    bench: Bench, pair: Pair
) -> None:
    ours, theirs = pair
    before, after = FakeRelay(), FakeRelay()
    bench.poller.add(ours.fileno(), before)
    bench.turn()
    bench.poller.hand_over(ours.fileno(), after)
    theirs.send(b"x")
    bench.turn()
    assert len(before.events) == len(after.events) == 1


def test_a_relay_that_continues_later_is_called_for_input_and_no_error(
    bench: Bench, pair: Pair
) -> None:
    """It may have read up to the end by then: it would take an error for a reset."""
    relay = FakeRelay()
    bench.poller.add(pair[0].fileno(), relay)
    bench.turn()
    bench.poller.again(pair[0].fileno(), relay)
    bench.turn()
    _, events = relay.events
    assert events & select.EPOLLIN
    assert events & select.EPOLLRDHUP
    assert not events & (select.EPOLLERR | select.EPOLLHUP)


def test_a_relay_that_asks_twice_to_continue_is_called_once(bench: Bench, pair: Pair) -> None:
    relay = FakeRelay()
    bench.poller.add(pair[0].fileno(), relay)
    bench.turn()
    del relay.events[:]
    bench.poller.again(pair[0].fileno(), relay)
    bench.poller.again(pair[0].fileno(), relay)
    bench.turn()
    assert len(relay.events) == 1


def test_an_exception_is_reported_to_its_relay_and_the_others_continue(
    bench: Bench, pair: Pair, second_pair: Pair
) -> None:
    def fail() -> None:
        raise SystemExit

    relays = FakeRelay(fail), FakeRelay(fail)
    for relay, (ours, _) in zip(relays, (pair, second_pair), strict=True):
        bench.poller.add(ours.fileno(), relay)
    bench.turn()
    for relay, (ours, _) in zip(relays, (pair, second_pair), strict=True):
        bench.poller.again(ours.fileno(), relay)
    bench.turn()
    for relay in relays:
        assert [type(error) for error in relay.failures] == [SystemExit] * 2


class Failing(FakeRelay):
    """A relay whose `failed` raises as well."""

    def failed(self, error: BaseException) -> None:
        super().failed(error)
        raise MemoryError


def test_a_relay_whose_failed_raises_does_not_keep_others_from_running(
    bench: Bench, pair: Pair, second_pair: Pair
) -> None:
    def fail() -> None:
        raise MemoryError

    seen: list[object] = []
    bench.loop.set_exception_handler(lambda loop, context: seen.append(context["exception"]))
    relays = Failing(fail), Failing(fail)
    for relay, (ours, _) in zip(relays, (pair, second_pair), strict=True):
        bench.poller.add(ours.fileno(), relay)
    bench.turn()
    assert [len(relay.failures) for relay in relays] == [1, 1]
    assert [type(error) for error in seen] == [MemoryError] * 2


class Replacing(FakeRelay):
    """When called, gives the number of another relay's socket to a new socket, unless that has
    happened to its own; calls `own` with the number.
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


def test_a_new_socket_gets_no_events_of_one_that_had_its_number(
    bench: Bench, pair: Pair, second_pair: Pair
) -> None:
    """The relay that is called first closes the other, which has an event in the same batch."""
    newcomer, (new, its_peer) = FakeRelay(), socket.socketpair()
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
    assert len(one.events) + len(other.events) == 1
    assert newcomer.events == [select.EPOLLOUT], "it gets the events of its own socket only"


class Busy(FakeRelay):
    """Sends each byte back, for ever."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(self.answer)
        self.sock = sock
        sock.setblocking(False)

    def answer(self) -> None:
        if self.events[-1] & select.EPOLLIN:
            self.sock.send(self.sock.recv(100))


@pytest.fixture
def busy(bench: Bench, pair: Pair) -> tuple[Busy, Busy]:
    """Two relays whose sockets are always busy."""
    both = Busy(pair[0]), Busy(pair[1])
    for one in both:
        bench.poller.add(one.sock.fileno(), one)
    pair[0].send(b"x")
    return both


def test_busy_sockets_do_not_delay_timers(bench: Bench, busy: tuple[Busy, Busy]) -> None:
    bench.loop.call_later(0.1, bench.end)
    bench.run()
    assert min(len(one.events) for one in busy) > 10


def test_busy_sockets_do_not_starve_other_descriptors(
    bench: Bench, busy: tuple[Busy, Busy], second_pair: Pair
) -> None:
    ours, theirs = second_pair
    bench.loop.add_reader(ours, bench.end)
    bench.loop.call_later(0.05, theirs.send, b"x")
    bench.run()
    assert min(len(one.events) for one in busy) > 10


def test_busy_sockets_do_not_starve_callbacks(bench: Bench, busy: tuple[Busy, Busy]) -> None:
    def count_down() -> None:
        left.pop()
        bench.loop.call_soon(count_down if left else bench.end)

    left = list(range(1000))
    bench.loop.call_soon(count_down)
    bench.run()
    assert not left


def test_a_timer_that_a_relay_sets_expires_in_time(bench: Bench, pair: Pair) -> None:
    """The loop is in a longer wait at that time."""
    ours, theirs = pair
    relay = FakeRelay()
    bench.poller.add(ours.fileno(), relay)
    bench.turn()
    relay.act = lambda: bench.loop.call_later(0.01, bench.end)
    bench.loop.call_later(0.05, theirs.send, b"x")
    bench.run()
    assert len(relay.events) == 2


def test_a_relay_can_schedule_a_callback(bench: Bench, pair: Pair) -> None:
    ours, theirs = pair
    relay = FakeRelay()
    bench.poller.add(ours.fileno(), relay)
    bench.turn()
    relay.act = lambda: bench.loop.call_soon(bench.end)
    bench.loop.call_later(0.05, theirs.send, b"x")
    bench.run()
    assert len(relay.events) == 2


def test_workers_that_only_relay_use_the_polling_loop() -> None:
    loops = [
        new_loop("auto", only_relays=True),
        new_loop("auto", only_relays=False),
        new_loop("asyncio", only_relays=False),
        new_loop("uvloop", only_relays=True),
    ]
    assert [isinstance(loop, PollingLoop) for loop in loops] == [True, False, True, False]
    for loop in loops:
        loop.close()


def test_the_relay_of_a_socket_continues_whatever_the_last_one_requests(
    bench: Bench, pair: Pair
) -> None:
    ours = pair[0].fileno()
    before, after = FakeRelay(), FakeRelay()
    bench.poller.add(ours, before)
    bench.poller.hand_over(ours, after)
    bench.turn()
    bench.poller.again(ours, after)
    bench.poller.again(ours, before)
    bench.turn()
    assert (len(before.events), len(after.events)) == (0, 2)


def test_an_event_of_a_relay_is_not_delivered_to_the_loop(
    bench: Bench, pair: Pair, second_pair: Pair
) -> None:
    """The relay that is called first gives the other's number to the loop; both have an event."""
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


def test_events_that_were_lost_are_delivered_by_the_next_poll(
    pair: Pair, second_pair: Pair
) -> None:
    """One relay ends the poll with an exception, and epoll reports an edge only once."""

    def end_the_poll(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        raise SystemExit

    def fail() -> None:
        raise MemoryError

    with closing(new_loop("asyncio")) as loop:
        loop.set_exception_handler(end_the_poll)
        poller = EpollPoller(select.epoll(), loop)
        relays = Failing(fail), Failing(fail)
        for relay, (ours, _) in zip(relays, (pair, second_pair), strict=True):
            poller.add(ours.fileno(), relay)
        with pytest.raises(SystemExit):
            poller.poll()
        assert sum(len(relay.events) for relay in relays) == 1
        for relay in relays:
            relay.act = lambda: None
        poller.poll()
        poller.close()
    assert sum(len(relay.events) for relay in relays) == 3, "both are called, one of them again"


def test_a_relay_can_stop_the_loop(bench: Bench, pair: Pair) -> None:
    ours, theirs = pair
    relay = FakeRelay()
    bench.poller.add(ours.fileno(), relay)
    bench.turn()
    relay.act = bench.loop.stop
    bench.loop.call_later(0.05, theirs.send, b"x")
    with bench.in_time():
        bench.loop.run_forever()
    assert len(relay.events) == 2
