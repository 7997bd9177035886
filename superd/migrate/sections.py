"""Splits xinetd.conf and the files that it includes into sections, as xinetd's own parser does.

Runs in the command line. After a mistake it skips the lines up to the next closing brace, as xinetd
does, and adds a note. Raises OSError if the first file cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from superd.migrate.entries import Note, legible, lines_left_out

MAX_INCLUDE_DEPTH = 5  # of nested includes, as in xinetd
SPACE = " \t\v\f\r"


@dataclass(frozen=True)
class Assignment:
    """One line of a section: `name = word ...`, or with += or -=."""

    name: str
    operator: str
    words: list[str]
    line: int


@dataclass
class Section:
    """The lines `line` to `end` of a file: a service, or the defaults, whose name is empty."""

    name: str
    file: str
    line: int
    end: int = 0
    assignments: list[Assignment] = field(default_factory=list)


Lines = Iterator[tuple[int, str]]


def read_sections(path: Path, notes: list[Note]) -> Iterator[Section]:
    """Yield the sections of a file, or of a directory as `includedir` reads it."""
    for file in _included(path) if path.is_dir() else [path]:
        yield from _of_file(file, notes, 0)


def _included(directory: Path) -> list[Path]:
    """Return the files that `includedir` reads, in the order of the C locale."""
    files = [path for path in directory.iterdir() if path.is_file()]
    return sorted(path for path in files if "." not in path.name and not path.name.endswith("~"))


def _of_file(file: Path, notes: list[Note], depth: int) -> Iterator[Section]:
    lines = _content_lines(file, notes)
    defaults = 0
    for number, line in lines:
        word, *more = re.split(r"[ \t]+", line)
        keyword = word.lower()
        if keyword in ("include", "includedir") and more:
            yield from _of_include(keyword, more[0], file, number, notes, depth)
        elif keyword == "defaults" or (keyword == "service" and more):
            reader = _Reader(str(file), lines, notes)
            name = more[0] if keyword == "service" else ""
            if (section := reader.section(name, number)) is None:
                continue
            if name or not defaults:
                defaults = defaults or (0 if name else number)
                yield section
            else:
                why = f"the defaults are already set on line {defaults}"
                notes.append(_left_out(str(file), number, section.end, why))
        else:
            why = f'expected defaults, service, include or includedir, found "{line[:60]}"'
            _Reader(str(file), lines, notes).skip(number, why)


def _content_lines(file: Path, notes: list[Note]) -> Lines:
    """Yield the lines that are neither empty nor comments, without surrounding space."""
    text = file.read_bytes().decode(errors="surrogateescape")
    if "\r\n" in text:
        what = "lines end in CR LF: xinetd rejects most of them, superd ignores the CR"
        notes.append(Note(str(file), 1, what))
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip(SPACE)
        if line and not line.startswith("#"):
            if line != legible(line):
                notes.append(
                    Note(str(file), number, "bytes that are not UTF-8 are written as \\x..")
                )
            yield number, legible(line)


def _of_include(
    word: str, target: str, file: Path, number: int, notes: list[Note], depth: int
) -> Iterator[Section]:
    path = Path(file.parent, target)
    try:
        files = [path] if word == "include" else _included(path)
        if depth >= MAX_INCLUDE_DEPTH:
            raise OSError(f"expected at most {MAX_INCLUDE_DEPTH} nested includes")
        for included in files:
            yield from _of_file(included, notes, depth + 1)
    except OSError as error:
        why = error.strerror or error
        notes.append(Note(str(file), number, f"left out: {word} {target}: {why}"))


class _Reader:
    """Reads one section, starting at the line after its name."""

    def __init__(self, file: str, lines: Lines, notes: list[Note]) -> None:
        self.file = file
        self.lines = lines
        self.notes = notes

    def section(self, name: str, start: int) -> Section | None:
        """Return the section; None, with a note, where xinetd drops it."""
        what = name or "the defaults"
        if (first := next(self.lines, None)) is None or first[1] != "{":
            self.skip(start, f"{what}: expected a single {{ on the next line")
            return None
        found = Section(name, self.file, start)
        is_disabled = False
        for number, line in self.lines:
            found.end = number
            if line == "}":
                return found
            mistake = _mistake_in(line)
            if not mistake:
                found.assignments.append(read := _assignment(number, line))
                value = " ".join(read.words).lower()
                is_disabled = is_disabled or (read.name == "disable" and value == "yes")
            elif is_disabled:  # xinetd ignores mistakes in a disabled service
                self.notes.append(Note(self.file, number, f"left out: {mistake}"))
            else:
                self.skip(number, f"{what}, from line {start}: {mistake}")
                return None
        why = f"{what}: expected a closing brace; xinetd drops this section"
        self.notes.append(_left_out(self.file, start, found.end, why))
        return None

    def skip(self, start: int, why: str) -> None:
        """Skip the lines up to the next closing brace, even if it closes another section."""
        last = start
        for number, line in self.lines:
            last = number
            if line == "}":
                break
        self.notes.append(_left_out(self.file, start, last, why))


def _left_out(file: str, first: int, last: int, why: str) -> Note:
    return Note(file, first, lines_left_out(first, last, why))


def _mistake_in(line: str) -> str:
    """Return why xinetd rejects a line of a section; "" where it accepts it."""
    if re.match(r"[^\s=]+=", line):
        return f'expected a space before =, found "{line[:60]}"'
    if not re.match(r"[^\s=]+\s+[+-]?=", line):
        return f'expected NAME = VALUE, found "{line[:60]}"'
    return ""


def _assignment(number: int, line: str) -> Assignment:
    name, operator, rest = re.findall(r"^(\S+)\s+([+-]?=)(.*)", line, re.DOTALL)[0]
    return Assignment(name.lower(), operator, re.findall(r"[^ \t]+", rest), number)
