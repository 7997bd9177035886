"""Takes inetd.conf apart: lines that go on, quotes, comments, and NetBSD's `on` with its keys.

Runs in the command line. Never looks at the system, never raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from superd.migrate.entries import legible

KINDS = ("stream", "dgram", "seqpacket", "raw", "rdm", "tli")
WORD = re.compile(r'"[^"]*"|\'[^\']*\'|[^ \t]+')
# of NetBSD's keys, which take the place of words: those that a line has a word for, in its order
PLACES = {"socktype": "", "protocol": "tcp", "wait": "", "user": "", "exec": "internal"}
Tell = Callable[[int, str], None]


@dataclass
class Line:
    """One entry, however many lines it is written on."""

    number: int
    words: list[str]


def read_lines(text: str, tell: Tell) -> Iterator[Line]:
    """Yield the entries of a file; what is odd about one is told with the number of its line."""
    if "\r\n" in text:
        tell(1, "lines end in CR LF, which inetd takes for a part of the last word; it is left out")
    pending: Line | None = None
    rows = enumerate(text.split("\n"), 1)
    for number, raw in rows:
        row = raw.rstrip("\r").strip(" \t")
        if row.startswith("#@"):
            tell(number, f"left out: the IPsec policy {row[2:].strip() or 'none'}")
        if not row or row.startswith("#"):
            continue
        if row != legible(row):
            tell(number, "bytes that are not UTF-8 stand as \\x..")
            row = legible(row)
        words = _words(number, row, tell)
        if raw[0] in " \t" and pending is not None:
            if words[1:2] and words[1] in KINDS:
                tell(number, "to BSD's inetds this goes on with the line before it")
            else:
                tell(number, f"goes on with line {pending.number}, as to BSD's inetds")
                pending.words += words
                continue
        if pending is not None:
            yield _without_comment(pending, tell)
        pending = Line(number, words)
        if words[1:2] in (["on"], ["off"]):
            pending = _of_keys(number, row, rows, tell)
    if pending is not None:
        yield _without_comment(pending, tell)


def _words(number: int, row: str, tell: Tell) -> list[str]:
    words = WORD.findall(row)
    if any(word[0] in "\"'" and word[-1] == word[0] and len(word) > 1 for word in words):
        tell(number, "quotes hold words together, as in FreeBSD and GNU; OpenBSD's inetd has none")
        words = [w[1:-1] if w[0] in "\"'" and len(w) > 1 and w[-1] == w[0] else w for w in words]
    return words


def _without_comment(line: Line, tell: Tell) -> Line:
    at = next((n for n, word in enumerate(line.words) if n and word.startswith("#")), None)
    if at is not None:
        comment = " ".join(line.words[at:])[:60]
        del line.words[at:]
        tell(line.number, f"left out as a comment: {comment}; inetd takes it for arguments")
    return line


def _of_keys(number: int, row: str, rows: Iterator[tuple[int, str]], tell: Tell) -> Line | None:
    """Return a line of the words that NetBSD's `service on key = value, ... ;` stands for."""
    body, last = row, number
    while not re.search(r";\s*(#.*)?$", body.rsplit("\n", 1)[-1]):
        if (following := next(rows, None)) is None:
            tell(number, _left_out(number, last, "there is no ; in the end"))
            return None
        last = following[0]
        body += "\n" + following[1].split("#")[0]
    service, switch, rest = body.split(None, 2)
    if switch == "off":
        tell(number, _left_out(number, last, f"{service} is off"))
        return None
    if re.search("[\"']", rest):
        why = f"{service}: quotes are not understood among keys"
        tell(number, _left_out(number, last, why))
        return None
    rest, _, more = rest.partition(";")
    if more := more.split("#")[0].replace(";", " ").strip():
        tell(number, f"left out: only one service a line is understood: {more[:60]}")
    keys = {
        key.strip().lower(): value.split()
        for key, _, value in (pair.partition("=") for pair in rest.split(","))
    }
    if bind := keys.pop("bind", None):
        service = f"{bind[0]}:{service}"
    values = {name: " ".join(keys.pop(name, [])) for name in PLACES}
    values["socktype"] = values["socktype"] or {"udp": "dgram"}.get(
        values["protocol"][:3], "stream"
    )
    group = " ".join(keys.pop("group", []))
    values["user"] += f":{group}" if group else ""
    arguments = keys.pop("args", [])
    wait = {"yes": "wait", "no": "nowait", "": "nowait"}.get(values["wait"], values["wait"])
    most, of_one = (" ".join(keys.pop(name, ["0"])) for name in ("service_max", "ip_max"))
    values["wait"] = f"{wait}:{most}:{of_one}" if {most, of_one} != {"0"} else wait
    for key, value in keys.items():
        tell(number, f"left out: {key} = {' '.join(value)}"[:70])
    words = [value or PLACES[name] or "-" for name, value in values.items()]
    return Line(number, [service, *words, *arguments])


def _left_out(first: int, last: int, why: str) -> str:
    until = f", with all down to line {last}" if last > first else ""
    return f"left out{until}: {why}"
