"""Splits inetd.conf into words: continued lines, quotes, comments, and NetBSD's `on` with its keys.

Runs in the command line. Never looks at the system, never raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from superd.migrate.entries import legible, lines_left_out

KINDS = ("stream", "dgram", "seqpacket", "raw", "rdm", "tli")
WORD = re.compile(r'"[^"]*"|\'[^\']*\'|[^ \t]+')
# NetBSD's keys for the words of an ordinary line, in its order, with the default of each
POSITIONAL_KEYS = {"socktype": "", "protocol": "tcp", "wait": "", "user": "", "exec": "internal"}
AddNote = Callable[[int, str], None]  # gets the number of a line, and the text


@dataclass
class Line:
    """The words of one entry, which may be continued over several lines; `number` is the first."""

    number: int
    words: list[str]


def read_lines(text: str, add_note: AddNote) -> Iterator[Line]:
    """Yield the entries of a file, and add a note on each peculiarity."""
    if "\r\n" in text:
        what = "inetd reads the CR as part of the last word, superd ignores it"
        add_note(1, f"lines end in CR LF: {what}")
    pending: Line | None = None
    rows = enumerate(text.split("\n"), 1)
    for number, raw in rows:
        row = raw.rstrip("\r").strip(" \t")
        if row.startswith("#@"):
            add_note(number, f"left out: the IPsec policy {row[2:].strip() or 'none'}")
        if not row or row.startswith("#"):
            continue
        if row != legible(row):
            add_note(number, "bytes that are not UTF-8 are written as \\x..")
            row = legible(row)
        words = _words(number, row, add_note)
        if raw[0] in " \t" and pending is not None:
            if words[1:2] and words[1] in KINDS:
                add_note(number, "read as a new entry; in the BSDs it continues the line before")
            else:
                add_note(number, f"continues line {pending.number}, as in the BSDs")
                pending.words += words
                continue
        if pending is not None:
            yield _without_comment(pending, add_note)
        pending = Line(number, words)
        if words[1:2] in (["on"], ["off"]):
            pending = _from_keys(number, row, rows, add_note)
    if pending is not None:
        yield _without_comment(pending, add_note)


def _words(number: int, row: str, add_note: AddNote) -> list[str]:
    words = WORD.findall(row)
    if any(word[0] in "\"'" and word[-1] == word[0] and len(word) > 1 for word in words):
        add_note(number, "quotes group words, as in FreeBSD and GNU; OpenBSD's inetd has no quotes")
        words = [w[1:-1] if w[0] in "\"'" and len(w) > 1 and w[-1] == w[0] else w for w in words]
    return words


def _without_comment(line: Line, add_note: AddNote) -> Line:
    at = next((n for n, word in enumerate(line.words) if n and word.startswith("#")), None)
    if at is not None:
        comment = " ".join(line.words[at:])[:60]
        del line.words[at:]
        add_note(line.number, f"left out as a comment: {comment}; inetd reads it as arguments")
    return line


def _from_keys(
    number: int, row: str, rows: Iterator[tuple[int, str]], add_note: AddNote
) -> Line | None:
    """Return NetBSD's `service on key = value, ... ;` as an ordinary line."""
    body, last = row, number
    while not re.search(r";\s*(#.*)?$", body.rsplit("\n", 1)[-1]):
        if (following := next(rows, None)) is None:
            add_note(number, lines_left_out(number, last, "expected ; at the end"))
            return None
        last = following[0]
        body += "\n" + following[1].split("#")[0]
    service, switch, rest = body.split(None, 2)
    if switch == "off":
        add_note(number, lines_left_out(number, last, f"{service} is off"))
        return None
    if re.search("[\"']", rest):
        why = f"{service}: quotes in keys are not supported"
        add_note(number, lines_left_out(number, last, why))
        return None
    rest, _, more = rest.partition(";")
    if more := more.split("#")[0].replace(";", " ").strip():
        add_note(number, f"left out: expected one service a line, found {more[:60]}")
    keys = {
        key.strip().lower(): value.split()
        for key, _, value in (pair.partition("=") for pair in rest.split(","))
    }
    if bind := keys.pop("bind", None):
        service = f"{bind[0]}:{service}"
    values = {name: " ".join(keys.pop(name, [])) for name in POSITIONAL_KEYS}
    values["socktype"] = values["socktype"] or {"udp": "dgram"}.get(
        values["protocol"][:3], "stream"
    )
    group = " ".join(keys.pop("group", []))
    values["user"] += f":{group}" if group else ""
    arguments = keys.pop("args", [])
    wait = {"yes": "wait", "no": "nowait", "": "nowait"}.get(values["wait"], values["wait"])
    maximum, per_source = (" ".join(keys.pop(name, ["0"])) for name in ("service_max", "ip_max"))
    values["wait"] = f"{wait}:{maximum}:{per_source}" if {maximum, per_source} != {"0"} else wait
    for key, value in keys.items():
        add_note(number, f"left out: {key} = {' '.join(value)}"[:70])
    words = [value or POSITIONAL_KEYS[name] or "-" for name, value in values.items()]
    return Line(number, [service, *words, *arguments])
