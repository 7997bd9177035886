"""The read buffer: a coroutine reads the bytes that were received, however they were segmented."""

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
    """Notes whether it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def buffer_of(*segments: bytes, end: bool = False) -> ReadBuffer:
    """Return a buffer that has received the segments and, if `end`, the end of the input."""
    made = ReadBuffer(Transport())
    for segment in segments:
        made.data_received(segment)
    if end:
        made.eof_received()
    return made


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


segmented = st.lists(st.binary(min_size=1, max_size=20), max_size=30)
with_line_feeds = st.lists(
    st.text(alphabet="ab\n", min_size=1, max_size=20).map(str.encode), max_size=30
)


@given(segmented, st.integers(1, 50))
def test_reads_return_every_byte_once_and_in_order(segments: list[bytes], limit: int) -> None:
    async def main() -> None:
        buffer = buffer_of(*segments, end=True)
        parts = []
        while part := await buffer.read(limit):
            assert len(part) <= limit
            parts.append(part)
        assert b"".join(parts) == b"".join(segments)

    run(main)


@given(with_line_feeds)
def test_lines_do_not_depend_on_the_segments(segments: list[bytes]) -> None:
    async def main() -> None:
        buffer = ReadBuffer(Transport())
        feeder = asyncio.create_task(feed(buffer, segments))
        lines = []
        while line := await buffer.readline(1000):
            lines.append(line)
        await feeder
        assert lines == b"".join(segments).splitlines(keepends=True)

    async def feed(buffer: ReadBuffer, segments: list[bytes]) -> None:
        for segment in segments:
            buffer.data_received(segment)
            await asyncio.sleep(0)
        buffer.eof_received()

    run(main)


@pytest.mark.parametrize("length", [9, 10])
def test_a_line_without_end_is_too_long_as_soon_as_it_has_the_limit(length: int) -> None:
    async def main() -> None:
        buffer = buffer_of(b"x" * length)
        waiting = asyncio.create_task(buffer.readline(10))
        await asyncio.sleep(0)
        assert waiting.done() == (length == 10)
        buffer.data_received(b"x")
        with pytest.raises(LineTooLong):
            await waiting
        assert await buffer.read(100) == b"x" * (length + 1)  # nothing is lost

    run(main)


def test_a_full_buffer_stops_reading_until_all_is_taken() -> None:
    async def main() -> None:
        transport = Transport()
        buffer = ReadBuffer(transport)
        buffer.data_received(bytes(HIGH_WATER))
        assert transport.reading
        buffer.data_received(b"x")
        assert not transport.reading
        assert await buffer.read(HIGH_WATER) == bytes(HIGH_WATER)
        assert await buffer.read(10) == b"x"
        assert not transport.reading  # no read needs more
        waiting = asyncio.create_task(buffer.read(10))
        await asyncio.sleep(0)
        assert transport.reading
        buffer.data_received(b"more")
        assert await waiting == b"more"

    run(main)


def test_a_line_longer_than_the_buffer_can_be_read() -> None:
    async def main() -> None:
        transport = Transport()
        buffer = ReadBuffer(transport)
        line = b"x" * (5 * HIGH_WATER) + b"\n"
        waiting = asyncio.create_task(buffer.readline(len(line)))
        for start in range(0, len(line), 1000):
            await asyncio.sleep(0)
            assert transport.reading
            buffer.data_received(line[start : start + 1000])
        assert await waiting == line

    run(main)


@pytest.mark.parametrize("error", [None, ConnectionResetError(), TimeoutError(), OSError(113, "")])
def test_a_connection_that_breaks_is_an_error_and_not_the_end_of_the_input(
    error: Exception | None,
) -> None:
    async def main() -> None:
        buffer = buffer_of(b"one\nha")
        buffer.connection_lost(error)
        assert await buffer.readline(100) == b"one\n"
        with pytest.raises(ConnectionResetError):
            await buffer.readline(100)
        assert await buffer.read(100) == b"ha"
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                await buffer.read(100)

    run(main)


def test_a_connection_that_breaks_after_the_end_of_the_input_is_no_error() -> None:
    async def main() -> None:
        buffer = buffer_of(b"one\nrest", end=True)
        buffer.connection_lost(ConnectionResetError())
        assert await buffer.readline(100) == b"one\n"
        assert await buffer.readline(100) == b"rest"
        assert await buffer.readline(100) == b""
        assert await buffer.read(100) == b""

    run(main)


def test_readers_and_writers_fail_when_the_connection_breaks() -> None:
    async def main() -> None:
        buffer = buffer_of()
        buffer.pause_writing()
        reader = asyncio.create_task(buffer.read(10))
        writers = [asyncio.create_task(buffer.drained()) for _ in range(3)]
        await asyncio.sleep(0)
        buffer.connection_lost(None)
        for waiting in (reader, *writers):
            with pytest.raises(ConnectionResetError):
                await waiting

    run(main)


def test_all_writers_continue_though_one_was_cancelled() -> None:
    async def main() -> None:
        buffer = buffer_of()
        await buffer.drained()
        buffer.pause_writing()
        writers = [asyncio.create_task(buffer.drained()) for _ in range(3)]
        await asyncio.sleep(0)
        writers[1].cancel()
        await asyncio.sleep(0)
        assert not writers[0].done()
        buffer.resume_writing()
        await asyncio.wait_for(asyncio.gather(writers[0], writers[2]), 10)
        assert writers[1].cancelled()

    run(main)


def test_a_second_reader_is_an_error_until_the_first_is_cancelled() -> None:
    async def main() -> None:
        buffer = buffer_of()
        first = asyncio.create_task(buffer.read(10))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another coroutine"):
            await buffer.read(10)
        first.cancel()
        await asyncio.sleep(0)
        buffer.data_received(b"x")
        assert await buffer.read(10) == b"x"

    run(main)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_read_of_no_bytes_is_an_error(limit: int) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="at least 1"):
            await buffer_of(b"x").read(limit)
        with pytest.raises(ValueError, match="at least 1"):
            await buffer_of(b"x\n").readline(limit)

    run(main)
