"""The poller and the timers of the plugin forward: who is told what, and when."""

from __future__ import annotations

import asyncio
import select
import socket

from superd_forward.poller import Poller
from superd_forward.rounds import Rounds


class Waiter:
    def __init__(self) -> None:
        self.told: list[int] = []

    def ready(self, events: int) -> None:
        self.told.append(events)

    def failed(self, error: BaseException) -> None:
        raise error


def test_who_goes_on_later_is_told_of_input_and_of_nothing_broken() -> None:
    """It may have read up to the end by then: an error would be taken for a reset."""

    async def run() -> list[int]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            poller, waiter = Poller(asyncio.get_running_loop()), Waiter()
            poller.add(ours.fileno(), waiter)
            poller.again(ours.fileno(), waiter)
            await asyncio.sleep(0)
            poller.forget(ours.fileno())
        return waiter.told

    later, *_ = asyncio.run(run())
    assert later & select.EPOLLIN
    assert later & select.EPOLLRDHUP
    assert not later & (select.EPOLLERR | select.EPOLLHUP)


def test_who_is_to_go_on_twice_has_one_turn() -> None:
    async def run() -> list[int]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            poller, waiter = Poller(asyncio.get_running_loop()), Waiter()
            poller.add(ours.fileno(), waiter)
            poller.again(ours.fileno(), waiter)
            poller.again(ours.fileno(), waiter)
            poller._run_again()
            poller.forget(ours.fileno())
        return waiter.told

    assert len(asyncio.run(run())) == 1


def test_a_mistake_in_one_round_does_not_end_the_rounds() -> None:
    async def run() -> int:
        calls: list[str] = []

        def look(member: str) -> None:
            calls.append(member)
            raise RuntimeError

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)
        rounds: Rounds[str] = Rounds(loop, 0.01, look)
        rounds.add("x")
        while len(calls) < 3:
            await asyncio.sleep(0.01)
        return len(calls)

    assert asyncio.run(asyncio.wait_for(run(), 5)) >= 3
