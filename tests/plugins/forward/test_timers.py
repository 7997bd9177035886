"""The timers that many connections of the plugin forward share."""

from __future__ import annotations

import asyncio

from superd_forward.timers import Timers


def test_an_error_in_one_check_does_not_stop_the_timer() -> None:
    async def run() -> int:
        calls: list[str] = []

        def check(member: str) -> None:
            calls.append(member)
            raise RuntimeError

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)
        timers: Timers[str] = Timers(loop, 0.01, check)
        timers.add("x")
        while len(calls) < 3:
            await asyncio.sleep(0.01)
        return len(calls)

    assert asyncio.run(asyncio.wait_for(run(), 5)) >= 3
