"""Stacks of faulthandler: their frames, and the plugin and services that they belong to."""

from __future__ import annotations

import faulthandler
import re
import tempfile

import pytest

from superd.observe.stacks import MAX_STACK_SIZE, Frame, stack_of
from superd.worker import engine
from superd.worker.runtime import polling

OWNERS = {"superd_block": ["a"], "superd_pack": ["b", "c"]}

HEAD = "Stack (most recent call first):\n"
RUN = f'  File "{engine.__file__}", line 200 in run\n'


def written(*frames: tuple[str, int, str]) -> bytes:
    lines = [f'  File "{file}", line {line} in {function}\n' for file, line, function in frames]
    return "".join([HEAD, *lines, RUN, '  File "/bin/superd", line 1 in <module>\n']).encode()


def test_a_stack_of_faulthandler_is_parsed() -> None:
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=False)
        file.seek(0)
        stack = stack_of(file.read())
    assert stack.is_known
    name = "test_a_stack_of_faulthandler_is_parsed"
    assert stack.frames[-1].file == __file__
    assert stack.frames[-1].function == name
    assert re.search(rf"in tests/observe/test_stacks\.py:\d+, {name}", stack.place({})[1])
    assert (
        "faulthandler.dump_traceback(file, all_threads=False)" in stack.lines(with_source=True)[-1]
    )


def test_the_innermost_frame_of_a_plugin_names_the_place() -> None:
    stack = stack_of(
        written(
            ("/lib/python3/re.py", 5, "match"),
            ("/lib/superd_block.py", 7, "parse"),
            ("/lib/superd_block.py", 3, "stream"),
            ("/lib/superd/worker/serve/session.py", 1, "_contained"),
        )
    )
    assert stack.frames[0] == Frame("/lib/superd/worker/serve/session.py", 1, "_contained")
    assert stack.frames[-1] == Frame("/lib/python3/re.py", 5, "match")
    assert stack.place(OWNERS) == ("a", "in plugin superd_block.py:7, parse")
    assert not stack.is_at_rest


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("/x/superd_block.py", ("a", "in plugin superd_block.py:1, f")),
        (
            "/x/superd_pack/deep/er.py",
            ("", "in plugin superd_pack/deep/er.py:1, f, of services b, c"),
        ),
        ("/x/superd_blocks.py", ("", "in /x/superd_blocks.py:1, f")),
        ("/a/b/c/d/superd.py", ("", "in c/d/superd.py:1, f")),
        ("<string>", ("", "in <string>:1, f")),
    ],
)
def test_a_file_belongs_to_the_services_of_its_plugin(file: str, place: tuple[str, str]) -> None:
    assert stack_of(written((file, 1, "f"))).place(OWNERS) == place


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [
            ("/lib/python3/selectors.py", 468, "select"),
            ("/lib/python3/asyncio/base_events.py", 1884, "_run_once"),
            ("/lib/python3/asyncio/base_events.py", 607, "run_forever"),
        ],
        [
            (polling.__file__, 70, "poll"),
            (polling.__file__, 139, "select"),
            ("/lib/python3/asyncio/base_events.py", 1884, "_run_once"),
        ],
    ],
)
def test_an_event_loop_in_its_poll_is_at_rest(frames: list[tuple[str, int, str]]) -> None:
    assert stack_of(written(*frames)).is_at_rest


def test_a_plugin_that_blocks_in_a_poll_is_not_at_rest() -> None:
    frames = [("/lib/python3/selectors.py", 468, "select"), ("/x/superd_block.py", 1, "f")]
    assert not stack_of(written(*frames)).is_at_rest


def test_the_last_of_several_stacks_is_parsed() -> None:
    both = written(("/x/one.py", 1, "f")) + written(("/x/two.py", 2, "g"))
    assert stack_of(both).frames == (Frame("/x/two.py", 2, "g"),)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n" * MAX_STACK_SIZE,
        b"\xff\x00" * 1000,
        b'  File "x", line 1 in f\n',
        b'Stack (most recent call first):\n  File "x", line 99999999999 in f\n',
    ],
)
def test_text_that_is_not_a_stack_has_no_frames(text: bytes) -> None:
    stack = stack_of(text)
    assert stack.frames == ()
    assert stack.place(OWNERS) == ("", "at an unknown place")
    assert stack.lines(with_source=True) == ()


def test_a_long_stack_is_cut_to_the_lines_of_a_record() -> None:
    stack = stack_of(written(*[(f"/x/{n}.py", n, "f") for n in range(1, 900)]))
    lines = stack.lines(with_source=False)
    assert len(lines) <= 60
    assert lines[-1] == '  File "/x/1.py", line 1, in f'
