"""The inbox: what a coroutine reads is what came, however it came."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superd.plugin.connection import LineTooLong
from superd.worker.serve.buffer import HIGH_WATER, ReadBuffer


class Transport(asyncio.Transport):
    """Notes whether it is to read."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def inbox(*segments: bytes, end: bool = False) -> ReadBuffer:
    """Return an inbox to which the segments have come, and perhaps the end."""
    made = ReadBuffer(Transport())
    for segment in segments:
        made.data_received(segment)
    if end:
        made.eof_received()
    return made


def run(talk: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(talk())


segmented = st.lists(st.binary(min_size=1, max_size=20), max_size=30)
with_line_feeds = st.lists(
    st.text(alphabet="ab\n", min_size=1, max_size=20).map(str.encode), max_size=30
)


@given(segmented, st.integers(1, 50))
def test_reads_give_every_byte_once_and_in_order(segments: list[bytes], limit: int) -> None:
    async def talk() -> None:
        box = inbox(*segments, end=True)
        parts = []
        while part := await box.read(limit):
            assert len(part) <= limit
            parts.append(part)
        assert b"".join(parts) == b"".join(segments)

    run(talk)


@given(with_line_feeds)
def test_lines_do_not_depend_on_the_segments(segments: list[bytes]) -> None:
    async def talk() -> None:
        box = ReadBuffer(Transport())
        feeder = asyncio.create_task(feed(box, segments))
        lines = []
        while line := await box.readline(1000):
            lines.append(line)
        await feeder
        assert lines == b"".join(segments).splitlines(keepends=True)

    async def feed(box: ReadBuffer, segments: list[bytes]) -> None:
        for segment in segments:
            box.data_received(segment)
            await asyncio.sleep(0)
        box.eof_received()

    run(talk)


@pytest.mark.parametrize("length", [9, 10])
def test_a_line_without_end_is_too_long_as_soon_as_it_has_the_limit(length: int) -> None:
    async def talk() -> None:
        box = inbox(b"x" * length)
        waiting = asyncio.create_task(box.readline(10))
        await asyncio.sleep(0)
        assert waiting.done() == (length == 10)
        box.data_received(b"x")
        with pytest.raises(LineTooLong):
            await waiting
        assert await box.read(100) == b"x" * (length + 1)  # it is still there

    run(talk)


def test_with_enough_in_it_no_more_is_read_until_all_is_taken() -> None:
    async def talk() -> None:
        transport = Transport()
        box = ReadBuffer(transport)
        box.data_received(bytes(HIGH_WATER))
        assert transport.reading
        box.data_received(b"x")
        assert not transport.reading
        assert await box.read(HIGH_WATER) == bytes(HIGH_WATER)
        assert await box.read(10) == b"x"
        assert not transport.reading  # nobody has asked for more
        waiting = asyncio.create_task(box.read(10))
        await asyncio.sleep(0)
        assert transport.reading
        box.data_received(b"more")
        assert await waiting == b"more"

    run(talk)


def test_a_line_longer_than_that_can_still_be_asked_for() -> None:
    async def talk() -> None:
        transport = Transport()
        box = ReadBuffer(transport)
        line = b"x" * (5 * HIGH_WATER) + b"\n"
        waiting = asyncio.create_task(box.readline(len(line)))
        for start in range(0, len(line), 1000):
            await asyncio.sleep(0)
            assert transport.reading
            box.data_received(line[start : start + 1000])
        assert await waiting == line

    run(talk)


@pytest.mark.parametrize("error", [None, ConnectionResetError(), TimeoutError(), OSError(113, "")])
def test_a_connection_that_breaks_is_an_error_and_not_an_end(error: Exception | None) -> None:
    async def talk() -> None:
        box = inbox(b"one\nha")
        box.connection_lost(error)
        assert await box.readline(100) == b"one\n"
        with pytest.raises(ConnectionResetError):
            await box.readline(100)
        assert await box.read(100) == b"ha"
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                await box.read(100)

    run(talk)


def test_one_that_ended_before_it_broke_has_ended() -> None:
    async def talk() -> None:
        box = inbox(b"one\nrest", end=True)
        box.connection_lost(ConnectionResetError())
        assert await box.readline(100) == b"one\n"
        assert await box.readline(100) == b"rest"
        assert await box.readline(100) == b""
        assert await box.read(100) == b""

    run(talk)


def test_whoever_waits_is_told_when_the_connection_breaks() -> None:
    async def talk() -> None:
        box = inbox()
        box.pause_writing()
        reader = asyncio.create_task(box.read(10))
        writers = [asyncio.create_task(box.drained()) for _ in range(3)]
        await asyncio.sleep(0)
        box.connection_lost(None)
        for waiting in (reader, *writers):
            with pytest.raises(ConnectionResetError):
                await waiting

    run(talk)


def test_all_who_wait_to_write_go_on_and_one_may_give_up() -> None:
    async def talk() -> None:
        box = inbox()
        await box.drained()
        box.pause_writing()
        writers = [asyncio.create_task(box.drained()) for _ in range(3)]
        await asyncio.sleep(0)
        writers[1].cancel()
        await asyncio.sleep(0)
        assert not writers[0].done()
        box.resume_writing()
        await asyncio.wait_for(asyncio.gather(writers[0], writers[2]), 10)
        assert writers[1].cancelled()

    run(talk)


def test_a_second_reader_is_a_mistake_until_the_first_has_given_up() -> None:
    async def talk() -> None:
        box = inbox()
        first = asyncio.create_task(box.read(10))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another coroutine"):
            await box.read(10)
        first.cancel()
        await asyncio.sleep(0)
        box.data_received(b"x")
        assert await box.read(10) == b"x"

    run(talk)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_read_of_nothing_is_a_mistake(limit: int) -> None:
    async def talk() -> None:
        with pytest.raises(ValueError, match="at least 1"):
            await inbox(b"x").read(limit)
        with pytest.raises(ValueError, match="at least 1"):
            await inbox(b"x\n").readline(limit)

    run(talk)
