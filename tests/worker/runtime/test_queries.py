"""Queries of a worker to the master: shared by callers, and answered within a time-out."""

from __future__ import annotations

import asyncio
import gc
import os

import pytest

from superd.master.report.queries import file_with
from superd.worker.runtime.queries import MasterQueries


def file_of(text: bytes) -> int:
    file = file_with(text)
    assert file is not None
    return file


def test_callers_within_a_moment_share_one_query_and_its_answer() -> None:
    sent = []

    async def main() -> list[bytes]:
        def send(what: str) -> bool:
            sent.append(what)
            return True

        queries = MasterQueries(asyncio.get_running_loop(), send)
        waiting = [asyncio.ensure_future(queries.observe(what)) for what in "aab"]
        await asyncio.sleep(0)
        queries.take_answer("a", files=[file_of(b"of a")])
        queries.take_answer("b", text="")
        queries.take_answer("b", text="too late")
        queries.take_answer("c", files=[file_of(b"no such query")])
        answers = await asyncio.gather(*waiting)
        return [*answers, await queries.observe("a")]

    gc.collect()  # closes the files of earlier tests
    before = os.listdir("/proc/self/fd")
    assert asyncio.run(main()) == [b"of a", b"of a", b"", b"of a"]
    assert sent == ["a", "b"]
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("can_send", [True, False])
def test_no_answer_is_an_error_for_all_callers_and_the_next_one_queries_again(
    can_send: bool,
) -> None:
    async def main() -> None:
        sent: list[str] = []

        def send(what: str) -> bool:
            sent.append(what)
            return can_send

        queries = MasterQueries(asyncio.get_running_loop(), send, timeout=0.05)
        both = [queries.observe("a") for _ in range(2)]
        results = await asyncio.gather(*both, return_exceptions=True)
        assert [type(result) for result in results] == [TimeoutError, TimeoutError]
        assert sent == ["a"]
        while len(sent) < 2:
            await asyncio.sleep(0)
            with pytest.raises(TimeoutError):
                await queries.observe("a")

    asyncio.run(main())


def test_a_cancelled_caller_takes_no_answer_from_another() -> None:
    async def main() -> bytes:
        queries = MasterQueries(asyncio.get_running_loop(), lambda what: True)
        cancelled, other = (asyncio.ensure_future(queries.observe("a")) for _ in range(2))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        queries.take_answer("a")  # without its file, as where no descriptor is free
        queries.take_answer("a", files=[file_of(b"here")])
        return await other

    assert asyncio.run(main()) == b"here"
