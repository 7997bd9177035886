"""What a worker writes to its standard output: the master reads a bounded part of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from superd.master.workers.output import ALLOWANCE, Output
from superd.observe.records import LONGEST_TEXT

Pipe = tuple[Output, int]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    output = Output(reader)
    yield output, writer
    output.close()
    os.close(writer)


def test_lines_are_put_together(pipe: Pipe) -> None:
    output, writer = pipe
    os.write(writer, b"one\ntwo")
    assert output.lines() == ["one"]
    os.write(writer, b" and \xff\n\n \n")
    assert output.lines() == ["two and \\xff"]
    assert output.lines() == []


@pytest.mark.parametrize("data", [b"\n", b"x\n", b"x"], ids=["empty lines", "lines", "no line"])
def test_a_flood_ends_at_the_allowance_until_it_is_renewed(pipe: Pipe, data: bytes) -> None:
    output, writer = pipe
    found: list[str] = []
    reads = 0
    while output.allowance > 0:
        os.write(writer, data * 4096)
        found += output.lines()
        reads += 1
    assert reads <= ALLOWANCE
    assert len(found) <= ALLOWANCE
    assert all(len(line) <= LONGEST_TEXT + 4096 for line in found)
    dropped = output.renew()
    assert output.allowance == ALLOWANCE
    assert dropped == ([f"{4096 - ALLOWANCE} lines of output were dropped"] if data[1:] else [])
