"""The attributes of xinetd, their valid values, and the values of one section.

Runs in the command line. Follows the tables of xinetd 2.3.15. Adds a note on each value that xinetd
rejects, and on whether xinetd then serves. Never raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from superd.migrate.addresses import patterns
from superd.migrate.entries import Note
from superd.migrate.sections import Assignment, Section

# the number of values: a fixed one, ANY, or a LIST, which += and -= change
ANY, LIST = -1, -2
SERVICE_ATTRIBUTES = {
    "socket_type": 1, "protocol": 1, "wait": 1, "user": 1, "group": 1, "server": 1,
    "server_args": ANY, "instances": 1, "log_on_success": LIST, "log_on_failure": LIST,
    "log_type": ANY, "only_from": LIST, "no_access": LIST, "access_times": ANY, "type": ANY,
    "rpc_version": 1, "rpc_number": 1, "id": 1, "env": LIST, "port": 1, "passenv": LIST,
    "flags": ANY, "nice": 1, "redirect": 2, "banner": 1, "bind": 1, "interface": 1,
    "per_source": 1, "groups": 1, "banner_success": 1, "banner_fail": 1, "cps": 2, "disable": 1,
    "max_load": 1, "rlimit_as": 1, "rlimit_cpu": 1, "rlimit_data": 1, "rlimit_files": 1,
    "rlimit_rss": 1, "rlimit_stack": 1, "v6only": 1, "deny_time": 1, "umask": 1, "libwrap": 1,
    "mdns": 1,
}  # fmt: skip
DEFAULTS_ATTRIBUTES = {
    "log_type": LIST, "log_on_success": LIST, "log_on_failure": LIST, "disabled": LIST,
    "no_access": LIST, "only_from": LIST, "instances": 1, "passenv": LIST, "banner": 1, "bind": 1,
    "interface": 1, "per_source": 1, "groups": 1, "banner_success": 1, "banner_fail": 1, "cps": 2,
    "enabled": LIST, "max_load": 1, "v6only": 1, "umask": 1,
}  # fmt: skip
MIN_NOFILE = 16  # descriptors; the lowest limit that superd accepts
# A service inherits these only from defaults that come before it; the others from all defaults.
INHERITED_IN_ORDER = (
    "only_from", "no_access", "passenv", "banner", "banner_success", "banner_fail",
)  # fmt: skip

TYPES = {"RPC", "INTERNAL", "UNLISTED", "SPECIAL", "TCPMUX", "TCPMUXPLUS"}
FLAGS = {
    "REUSE", "INTERCEPT", "NORETRY", "IDONLY", "NAMEINARGS", "NODELAY", "KEEPALIVE", "NOLIBWRAP",
    "SENSOR", "IPV4", "IPV6", "LABELED",
}  # fmt: skip
LOGGED_ON_SUCCESS = {"HOST", "DURATION", "EXIT", "PID", "USERID", "TRAFFIC"}
LOGGED_ON_FAILURE = {"HOST", "ATTEMPT", "USERID"}

# notes on attributes and flags that have no key
ATTRIBUTE_NOTES = {
    "banner": "superd sends no banner to admitted clients; let the program send it",
    "banner_success": "superd sends no banner to admitted clients; let the program send it",
    "banner_fail": "copy the text of the file to banner-refused",
    "log_type": "superd records every connection; see record-log and record-format",
    "log_on_success": "superd records every connection; see record",
    "log_on_failure": "superd records every refusal; see record",
    "deny_time": "only a SENSOR bans its clients",
    "libwrap": "superd does not read hosts.allow; see allow and deny",
    "mdns": "superd does not announce its services",
    "rpc_version": "superd has no RPC services",
    "rpc_number": "superd has no RPC services",
    "redirect": "an internal service is not forwarded",
    "server": "this service runs no program",
    "server_args": "this service runs no program",
    "env": "it applies to programs only",
    "passenv": "it applies to programs only",
}
FLAG_NOTES = {
    "INTERCEPT": "left out: with wait = yes the program accepts its clients itself",
    "LABELED": "left out: it has no equivalent",
    "IDONLY": "left out: superd queries no ident server",
    "NORETRY": "left out: superd does not retry",
    "REUSE": "left out: xinetd ignores it, too",
    "SENSOR": "superd records each client; see the options of sniffer, and never-ban",
}


@dataclass
class Value:
    """The words of an attribute, and the line that set it last."""

    words: list[str]
    file: str
    line: int
    is_inherited: bool = False


Values = dict[str, Value]


def _word(pattern: str) -> Callable[[list[str]], bool]:
    return lambda words: re.fullmatch(pattern, words[0], re.IGNORECASE) is not None


def _among(known: set[str], *, may_be_empty: bool = False) -> Callable[[list[str]], bool]:
    return lambda words: (may_be_empty or bool(words)) and {w.upper() for w in words} <= known


def _times(words: list[str]) -> bool:
    """Tell whether xinetd accepts all intervals; it rejects 24:00, and any that spans midnight."""
    found = [re.fullmatch(r"(\d{1,4}):(\d{1,4})-(\d{1,4}):(\d{1,4})", word) for word in words]
    for match in found:
        if match is None:
            return False
        first, first_minute, last, last_minute = map(int, match.groups())
        if max(first, last) > 23 or max(first_minute, last_minute) > 59:
            return False
        if (first, first_minute) >= (last, last_minute):
            return False
    return bool(found)


def _log(words: list[str]) -> bool:
    kind = words[0].upper() if words else ""
    return len(words) in {"SYSLOG": (2, 3), "FILE": (2, 3, 4)}.get(kind, ())


def _load(words: list[str]) -> bool:
    return (
        re.fullmatch(r"\d{0,9}\.?\d{1,9}|\d{1,9}\.", words[0]) is not None and float(words[0]) != 0
    )


YES_OR_NO = _word("yes|no")
COUNT = _word(r"unlimited|\d{1,9}")
SIZE = _word(r"unlimited|\d{1,15}[km]?")
VALIDATORS: dict[str, Callable[[list[str]], bool]] = {
    "wait": YES_OR_NO, "disable": YES_OR_NO, "groups": YES_OR_NO, "v6only": YES_OR_NO,
    "socket_type": _word("stream|dgram|raw|seqpacket"), "instances": COUNT, "per_source": COUNT,
    "cps": lambda words: all(re.fullmatch(r"\d{1,9}", word) for word in words),
    "port": lambda words: re.fullmatch(r"\d{1,9}", words[0]) is not None and int(words[0]) <= 65535,
    "nice": _word(r"[+-]?\d{1,4}"), "umask": _word(r"0{0,9}[0-7]{1,3}"), "max_load": _load,
    "deny_time": _word(r"forever|never|-?\d{1,9}"), "rpc_number": _word(r"\d+"),
    "rpc_version": _word(r"\d+(-\d+)?"), "rlimit_cpu": _word(r"unlimited|\d{1,9}"),
    "rlimit_as": SIZE, "rlimit_data": SIZE, "rlimit_files": SIZE, "rlimit_rss": SIZE,
    "rlimit_stack": SIZE, "type": _among(TYPES), "flags": _among(FLAGS), "server_args": bool,
    "access_times": _times, "log_type": _log,
    "log_on_success": _among(LOGGED_ON_SUCCESS, may_be_empty=True),
    "log_on_failure": _among(LOGGED_ON_FAILURE, may_be_empty=True),
    "env": lambda words: all("=" in word for word in words),
}  # fmt: skip


class SectionValues:
    """The values of one section, with those that it inherits.

    `rejected` has the line of each attribute for which xinetd does not serve.
    """

    def __init__(self, section: Section, inherited: Values, notes: list[Note]) -> None:
        self.section = section
        self.notes = notes
        self.known = SERVICE_ATTRIBUTES if section.name else DEFAULTS_ATTRIBUTES
        self.values: Values = dict(inherited)
        self.rejected: dict[str, int] = {}
        for assignment in section.assignments:
            self._add(assignment)

    def _note(self, line: int, text: str) -> None:
        prefix = f"{self.section.name}: " if self.section.name else ""
        self.notes.append(Note(self.section.file, line, prefix + text))

    def _add(self, assignment: Assignment) -> None:
        name = "bind" if assignment.name == "interface" else assignment.name
        before = self.values.get(name)
        is_new = self._is_new(before)
        count = self.known.get(assignment.name)
        if count is None:
            is_of_services = assignment.name in SERVICE_ATTRIBUTES and not self.section.name
            why = "has no meaning in the defaults" if is_of_services else "has no equivalent"
            self._note(assignment.line, f"left out: {assignment.name} {why}")
        elif count != LIST and not is_new and before is not None:
            text = f"left out: {assignment.name} is already set on line {before.line}"
            self._note(assignment.line, text)
        elif count != LIST and assignment.operator != "=":
            text = f"left out: {assignment.name}: expected =, found {assignment.operator}"
            self._note(assignment.line, text)
        elif 0 < count != len(assignment.words):
            values = "1 value" if count == 1 else f"{count} values"
            text = f"left out: {assignment.name}: expected {values}, found {len(assignment.words)}"
            self._note(assignment.line, text)
        elif not self._is_valid(name, assignment):
            self.rejected[name] = assignment.line
            found = " ".join([assignment.name, assignment.operator, *assignment.words])[:70]
            what = "this service" if self.section.name else "any service"
            text = f"left out: {found}: xinetd rejects this value, and does not serve {what}"
            self._note(assignment.line, text)
        else:
            self.values[name] = Value(
                self._merged(name, assignment, count, before), self.section.file, assignment.line
            )

    def _is_new(self, before: Value | None) -> bool:
        """Tell whether this section has not set an attribute yet; `before` is its value so far."""
        return before is None or (before.is_inherited and bool(self.section.name))

    def _is_valid(self, name: str, assignment: Assignment) -> bool:
        if name in ("only_from", "no_access"):
            try:
                for word in assignment.words:
                    patterns(word)
            except ValueError:
                return False
        if name == "env" and assignment.operator == "-=":
            return False
        return VALIDATORS[name](assignment.words) if name in VALIDATORS else True

    def _merged(
        self, name: str, assignment: Assignment, count: int, before: Value | None
    ) -> list[str]:
        """Return the words of an attribute after one more line that sets it."""
        words = assignment.words
        if name in ("only_from", "no_access"):
            words = self._patterns(name, assignment)
        old, is_new = before.words if before else [], self._is_new(before)
        operator = assignment.operator
        if not self.section.name and (operator == "=" or name in ("enabled", "disabled")):
            operator = "+="  # in the defaults these mean the same
        if count != LIST or operator == "=":
            if old and not is_new and before is not None:
                self._note(before.line, f"left out: {name} is replaced on line {assignment.line}")
            return words
        if operator == "+=":
            return old + [word for word in words if name != "passenv" or word not in old]
        removed = {word.lower() for word in words}
        return [word for word in old if word.lower() not in removed]

    def _patterns(self, name: str, assignment: Assignment) -> list[str]:
        found: list[str] = []
        different: dict[str, None] = {}  # each note once, in order
        for word in assignment.words:
            of_word, note = patterns(word)
            found += of_word
            if note:
                different[note] = None
        for note in different:
            self._note(assignment.line, f"{name}: {note}")
        return found


def half_open_window(window: str) -> str:
    """Return an interval for superd: xinetd's includes its last minute, superd's does not."""
    hours, minutes, last_hour, last_minute = map(int, re.findall(r"\d+", window))
    after = last_hour * 60 + last_minute + 1
    return f"{hours}:{minutes:02}-{after // 60}:{after % 60:02}"


def limit_value(key: str, value: str) -> str | int:
    """Return a limit as a value of rlimits: xinetd's K and M are binary, its time is in seconds."""
    if key == "cpu":
        return f"{value}s"
    unit = {"K": 1 << 10, "M": 1 << 20}.get(value[-1].upper())
    if key == "nofile":
        return max(MIN_NOFILE, int(value[:-1]) * unit if unit else int(value))
    return f"{value[:-1]}{value[-1].upper()}iB" if unit else int(value)
