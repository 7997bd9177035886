"""What a worker asks the master: once for all who want to know, and never for ever."""

from __future__ import annotations

import asyncio
import os

import pytest

from superd.master.report.queries import file_with
from superd.worker.runtime.queries import Observer


def given_file(text: bytes) -> int:
    file = file_with(text)
    assert file is not None
    return file


def test_all_who_ask_in_a_moment_have_one_question_and_one_answer() -> None:
    asked = []

    async def main() -> list[bytes]:
        def ask(what: str) -> bool:
            asked.append(what)
            return True

        observer = Observer(asyncio.get_running_loop(), ask)
        waiting = [asyncio.ensure_future(observer.observe(what)) for what in "aab"]
        await asyncio.sleep(0)
        observer.answered("a", file=given_file(b"of a"))
        observer.answered("b", text="")
        observer.answered("b", text="too late")
        observer.answered("c", file=given_file(b"not asked for"))
        answers = await asyncio.gather(*waiting)
        return [*answers, await observer.observe("a")]

    before = os.listdir("/proc/self/fd")
    assert asyncio.run(main()) == [b"of a", b"of a", b"", b"of a"]
    assert asked == ["a", "b"]
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("is_sent", [True, False])
def test_no_answer_is_told_to_all_and_the_next_one_asks_anew(is_sent: bool) -> None:
    async def main() -> None:
        asked: list[str] = []

        def ask(what: str) -> bool:
            asked.append(what)
            return is_sent

        observer = Observer(asyncio.get_running_loop(), ask, patience=0.05)
        both = [observer.observe("a") for _ in range(2)]
        results = await asyncio.gather(*both, return_exceptions=True)
        assert [type(result) for result in results] == [TimeoutError, TimeoutError]
        assert asked == ["a"]
        while len(asked) < 2:
            await asyncio.sleep(0)
            with pytest.raises(TimeoutError):
                await observer.observe("a")

    asyncio.run(main())


def test_a_client_that_goes_away_while_it_waits_takes_no_answer_from_others() -> None:
    async def main() -> bytes:
        observer = Observer(asyncio.get_running_loop(), lambda what: True)
        gone, stays = (asyncio.ensure_future(observer.observe("a")) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        observer.answered("a")  # without its file, as where no descriptor is free
        observer.answered("a", file=given_file(b"here"))
        return await stays

    assert asyncio.run(main()) == b"here"
