"""Takes xinetd.conf and the files that it includes apart, just as xinetd's own parser does.

Runs in the command line. Where xinetd skips lines, up to the next closing brace, so does this, and
tells it. Raises OSError for the first file if it cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from superd.migrate.entries import Note, legible

DEEPEST = 5  # includes within includes
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
    """A service, or the defaults, which have no name."""

    name: str
    file: str
    line: int
    end: int = 0
    assignments: list[Assignment] = field(default_factory=list)


Lines = Iterator[tuple[int, str]]


def read_sections(path: Path, notes: list[Note]) -> Iterator[Section]:
    """Yield the sections of a file, or of a directory as `includedir` takes it."""
    for file in _included(path) if path.is_dir() else [path]:
        yield from _of_file(file, notes, 0)


def _included(directory: Path) -> list[Path]:
    """Return the files that `includedir` means, in the order of the C locale."""
    files = [path for path in directory.iterdir() if path.is_file()]
    return sorted(path for path in files if "." not in path.name and not path.name.endswith("~"))


def _of_file(file: Path, notes: list[Note], depth: int) -> Iterator[Section]:
    lines = _significant(file, notes)
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
                why = f"the defaults are there already, on line {defaults}"
                notes.append(_left_out(str(file), number, section.end, why))
        else:
            _Reader(str(file), lines, notes).skip(number, f"this is not understood: {line[:60]}")


def _significant(file: Path, notes: list[Note]) -> Lines:
    """Yield the lines that xinetd looks at."""
    text = file.read_bytes().decode(errors="surrogateescape")
    if "\r\n" in text:
        what = "lines end in CR LF, with which xinetd takes hardly any; the CR is left out"
        notes.append(Note(str(file), 1, what))
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip(SPACE)
        if line and not line.startswith("#"):
            if line != legible(line):
                notes.append(Note(str(file), number, "bytes that are not UTF-8 stand as \\x.."))
            yield number, legible(line)


def _of_include(
    word: str, target: str, file: Path, number: int, notes: list[Note], depth: int
) -> Iterator[Section]:
    path = Path(file.parent, target)
    try:
        files = [path] if word == "include" else _included(path)
        if depth >= DEEPEST:
            raise OSError("includes are too deep")
        for one in files:
            yield from _of_file(one, notes, depth + 1)
    except OSError as error:
        why = error.strerror or error
        notes.append(Note(str(file), number, f"left out: {word} {target}: {why}"))


class _Reader:
    """Reads one section, from the line after its name on."""

    def __init__(self, file: str, lines: Lines, notes: list[Note]) -> None:
        self.file = file
        self.lines = lines
        self.notes = notes

    def section(self, name: str, start: int) -> Section | None:
        """Return the section; None where xinetd drops it, which is told."""
        what = name or "the defaults"
        if (first := next(self.lines, None)) is None or first[1] != "{":
            self.skip(start, f"{what}: there is no {{ on a line of its own after this one")
            return None
        found = Section(name, self.file, start)
        is_off = False
        for number, line in self.lines:
            found.end = number
            if line == "}":
                return found
            mistake = _mistake_in(line)
            if not mistake:
                one = _assignment(number, line)
                found.assignments.append(one)
                is_off = is_off or (one.name == "disable" and " ".join(one.words).lower() == "yes")
            elif is_off:  # xinetd reads no further in what is disabled
                self.notes.append(Note(self.file, number, f"left out: {mistake}: {line[:60]}"))
            else:
                self.skip(number, f"{what}, from line {start} on: {mistake}: {line[:60]}")
                return None
        why = f"{what} has no closing brace, without which xinetd drops it"
        self.notes.append(_left_out(self.file, start, found.end, why))
        return None

    def skip(self, start: int, why: str) -> None:
        """Skip up to the next closing brace, whosever it is."""
        last = start
        for number, line in self.lines:
            last = number
            if line == "}":
                break
        self.notes.append(_left_out(self.file, start, last, why))


def _left_out(file: str, first: int, last: int, why: str) -> Note:
    until = f", with all down to line {last}" if last > first else ""
    return Note(file, first, f"left out{until}: {why}")


def _mistake_in(line: str) -> str:
    """Return why xinetd does not take a line within a section."""
    if re.match(r"[^\s=]+=", line):
        return "xinetd wants a space before the ="
    if not re.match(r"[^\s=]+\s+[+-]?=", line):
        return "this is not understood"
    return ""


def _assignment(number: int, line: str) -> Assignment:
    name, operator, rest = re.findall(r"^(\S+)\s+([+-]?=)(.*)", line, re.DOTALL)[0]
    return Assignment(name.lower(), operator, re.findall(r"[^ \t]+", rest), number)
