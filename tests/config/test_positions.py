"""The positions of keys and values: the scanner agrees with the parser on every document."""

from __future__ import annotations

import time
from typing import Any

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from superd.config.positions import (
    MAX_DEPTH,
    MAX_SCALAR_LENGTH,
    Path,
    Position,
    TooMuch,
    find_places,
)

KEYS = ("{}", '"{}"', "'{}'", '"\\u006b{}"', '"k {}"', "'k.{}'", '"k\\"{}"', '"k\\tä{}"')
GAPS = ("", " ", "\t", "  ")
LINE_ENDS = ("\n", "\n\n", " # a comment with ] } = \" '\n", "\r\n", "\t\r\n\r\n")
INNER_GAPS = ("", " ", "\n", "\r\n", " # ] inside and }\n  ")
SCALARS = (
    "{0}", "+{0}", "{0:#x}", "{0}.5", "{0}e1", '"s{0}"', "'s{0}'", '"\\"{0} # = ]"', "'[{0}'",
    '"""\ns{0}\n[no.table]\n""quoted\\"""""', "'''\n'{0}'\n# no comment''''",
    "{1}-01-02", "{1}-01-02T03:04:05Z", "{1}-01-02 03:04:05", "{1}-01-02 03:04:05.5+01:00",
)  # fmt: skip


class Writer:
    """Generates documents in which no key and no scalar occurs twice."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.count = 1000
        self.tokens: dict[object, str] = {}

    def pick(self, choices: tuple[str, ...]) -> str:
        return self.data.draw(st.sampled_from(choices))

    def number(self) -> int:
        self.count += 1
        return self.count

    def part(self) -> str:
        return self.pick(KEYS).format(f"k{self.number()}")

    def key(self) -> str:
        parts = [self.part() for _ in range(self.data.draw(st.integers(1, 2)))]
        return f"{self.pick(GAPS)}.{self.pick(GAPS)}".join(parts)

    def value(self, depth: int) -> str:
        kind = self.data.draw(st.integers(0, 5)) if depth else 0
        if kind == 4:
            return self.array(depth - 1)
        if kind == 5:
            return self.inline_table(depth - 1)
        number = self.number()
        token = self.pick(SCALARS).format(number, f"{number:04}")
        self.tokens[tomli.loads(f"v = {token}")["v"]] = token.replace("\r\n", "\n")
        return token

    def array(self, depth: int) -> str:
        items = [self.value(depth) for _ in range(self.data.draw(st.integers(0, 3)))]
        return f"[{self._between(items)}]"

    def inline_table(self, depth: int) -> str:
        items = [
            f"{self.part()}{self.pick(GAPS)}={self.pick(GAPS)}{self.value(depth)}"
            for _ in range(self.data.draw(st.integers(0, 3)))
        ]
        return f"{{{self._between(items)}}}"

    def _between(self, items: list[str]) -> str:
        """Separate items with commas, on one line or several, with or without a trailing comma."""
        text = self.pick(INNER_GAPS)
        for item in items:
            text += f"{item}{self.pick(INNER_GAPS)},{self.pick(INNER_GAPS)}"
        return text if self.data.draw(st.booleans()) else text.rpartition(",")[0] or text

    def document(self) -> str:
        text = ""
        array = self.part()
        for _ in range(self.data.draw(st.integers(0, 4))):
            header = self.pick(("", "[{key}]", "[[{array}]]", "[{array}.{key}]", "[ {key} ]"))
            if "[{array}" in header and f"[[{array}]]" not in text:
                header = "[[{array}]]"
            text += header.format(key=self.key(), array=array) + self.pick(LINE_ENDS)
            for _ in range(self.data.draw(st.integers(0, 3))):
                text += f"{self.pick(GAPS)}{self.key()} = {self.value(2)}{self.pick(LINE_ENDS)}"
        return text


def keys_of(value: Any, path: Path = ()) -> list[tuple[Path, Any]]:
    """Return every path of a parsed document with its value."""
    inside: Any = []
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = enumerate(value)
    found = [(path, value)] if path else []
    for key, inner in inside:
        found += keys_of(inner, (*path, key))
    return found


def text_at(text: str, position: Position) -> str:
    lines = text.split("\n")
    rest = [lines[position.line - 1][position.column - 1 :], *lines[position.line :]]
    return "\n".join(rest).replace("\r\n", "\n")


def key_at(text: str, position: Position) -> str:
    """Return the key, or part of a key, at a position."""
    rest = text_at(text, position)
    quote = rest[0] if rest[0] in "\"'" else ""
    end = next(
        n
        for n, c in enumerate(rest)
        if n and (c == quote and rest[n - 1] != "\\" if quote else c in " \t.=]\n")
    )
    return next(iter(tomli.loads(f"{rest[: end + len(quote)]} = 0")))


def check_a_document(data: st.DataObject) -> None:
    writer = Writer(data)
    text = writer.document()
    places = find_places(text)
    for path, value in keys_of(tomli.loads(text)):
        assert path in places, (text, path)
        place = places.nearest(path)
        if isinstance(path[-1], str):
            assert key_at(text, place.key) == path[-1], (text, path)
        is_table, is_array = isinstance(value, dict), isinstance(value, list)
        token = "{" if is_table else "[" if is_array else writer.tokens[value]
        is_header = place.key == place.value and (is_table or is_array)
        assert is_header or text_at(text, place.value).startswith(token), (text, path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_key_and_value_that_the_parser_finds_has_its_place(data: st.DataObject) -> None:
    check_a_document(data)


@pytest.mark.soak
@settings(max_examples=10_000, deadline=None)
@given(st.data())
def test_every_key_and_value_has_its_place_in_very_many_documents(data: st.DataObject) -> None:
    check_a_document(data)


@pytest.mark.parametrize(
    ("text", "path", "line", "column"),
    [
        ("a = 1", ("a",), 1, 5),
        ("\n\n  a\t=\t1", ("a",), 3, 7),
        ("a.b . c = [1, 2]", ("a", "b", "c", 1), 1, 15),
        ("a = [\r\n  1, # one\r\n\t2,\r\n]", ("a", 1), 3, 2),
        ("[t]\nx = { y = { z = 1 } }", ("t", "x", "y", "z"), 2, 17),
        ("[[t]]\nx = 1\n[[t]]\nx = 2", ("t", 1, "x"), 4, 5),
        ("[[t]]\n[t.u]\nx = 1\n[[t]]\n[t.u]\nx = 2", ("t", 1, "u", "x"), 6, 5),
        ('a = """\nb = 2\n"""\nb = 3', ("b",), 4, 5),
        ("a = '''\nb = 2\n'''\nb = 3", ("b",), 4, 5),
        ('a = """\n""b \\"""\n"""""\nb = 3', ("b",), 4, 5),
        ("'quoted key' = 1", ("quoted key",), 1, 16),
        ('"\\u0061" = 1', ("a",), 1, 12),
        ('ä = 1\n"ä" = 1', ("ä",), 1, 1),  # not TOML: no position is known
    ],
)
def test_a_position_is_what_an_editor_shows(text: str, path: Path, line: int, column: int) -> None:
    assert find_places(text).nearest(path).value == Position(line, column)


def test_each_part_of_a_header_and_of_a_dotted_key_has_its_own_place() -> None:
    places = find_places("[service.'a b'.options]\nto.host = 1")
    columns = {
        path: places.nearest(path).key
        for path in [("service",), ("service", "a b"), ("service", "a b", "options", "to", "host")]
    }
    assert list(columns.values()) == [Position(1, 2), Position(1, 10), Position(2, 4)]


def test_an_unknown_path_has_the_position_of_its_nearest_ancestor() -> None:
    places = find_places("[a]\n[a.b]\nc = 1")
    assert places.nearest(("a", "b", "x", 3)).key == Position(2, 4)
    assert places.nearest(("x",)).key == Position(1, 1)


@pytest.mark.parametrize(
    ("text", "first", "again"),
    [
        ("a = 1\na = 2", 1, 2),
        ("[a]\nb = 1\n[c]\n[a]", 1, 4),
        ("[a]\nb = { c = 1, d = 2, c = 3 }", 2, 2),
    ],
)
def test_a_repeated_key_is_reported_with_both_positions(text: str, first: int, again: int) -> None:
    repeated = find_places(text).repeated
    assert repeated is not None
    assert (repeated.first.line, repeated.again.line) == (first, again)
    with pytest.raises(tomli.TOMLDecodeError):
        tomli.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        f"a = {'[' * 9}{']' * 9}",
        f"a = {'[' * 100_000}",
        "a = " + "{ b = " * 9,
        f"a = {'[{a=' * 50_000}",
        ".".join("a" * 9) + " = 1",
        ".".join("a" * 20_000) + " = 1",
        f"[{'.'.join('a' * 20_000)}]",
        f"[a.b.c.d]\ne.f.g.h = {'[' * 20}",
        f"a = {'1' * (MAX_SCALAR_LENGTH + 1)}",
        f"a = {'1' * 100_000}",
        f"a = [[0x{'f' * 5000}]]",
    ],
    ids=lambda text: f"{text[:20]}...{len(text)}",
)
def test_documents_that_slow_or_crash_the_parser_are_rejected_first(text: str) -> None:
    with pytest.raises(TooMuch) as caught:
        find_places(text)
    assert caught.value.position.line <= 2
    assert str(MAX_DEPTH) in str(caught.value) or str(MAX_SCALAR_LENGTH) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        '"""' * 100_000,
        "'''" * 100_001,
        'a = """' + '"\\' * 100_000,
        'a = "' + "\\" * 200_001,
        "a = '" + "\n'" * 50_000,
        "a" * 300_000,
        "a=" * 100_000,
        "[" * 300_000,
        "[a]" * 50_000,
        "\r" * 300_000,
        "#" * 300_000,
        "a = " + "," * 100_000,
        "a = {" * 7,
        "'" + "." * 100_000,
    ],
    ids=lambda text: f"{text[:12]!r}...{len(text)}",
)
def test_text_that_is_not_toml_takes_linear_time(text: str) -> None:
    before = time.process_time()
    find_places(text)
    assert time.process_time() - before < 1
