"""Which attributes xinetd has, which values it takes, and what they come to, defaults and all.

Runs in the command line, after xinetd 2.3.15's own tables. What it would not take is told, and
whether it would then serve at all. Never raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from superd.migrate.addresses import patterns
from superd.migrate.entries import Note
from superd.migrate.sections import Assignment, Section

# how many values: a number of them, ANY, or a LIST, which += and -= change
ANY, LIST = -1, -2
OF_A_SERVICE = {
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
OF_THE_DEFAULTS = {
    "log_type": LIST, "log_on_success": LIST, "log_on_failure": LIST, "disabled": LIST,
    "no_access": LIST, "only_from": LIST, "instances": 1, "passenv": LIST, "banner": 1, "bind": 1,
    "interface": 1, "per_source": 1, "groups": 1, "banner_success": 1, "banner_fail": 1, "cps": 2,
    "enabled": LIST, "max_load": 1, "v6only": 1, "umask": 1,
}  # fmt: skip
FEWEST_FILES = 16  # that superd takes for a limit
# what a service has of the defaults only if they come before it
AT_ONCE = ("only_from", "no_access", "passenv", "banner", "banner_success", "banner_fail")

TYPES = {"RPC", "INTERNAL", "UNLISTED", "SPECIAL", "TCPMUX", "TCPMUXPLUS"}
FLAGS = {
    "REUSE", "INTERCEPT", "NORETRY", "IDONLY", "NAMEINARGS", "NODELAY", "KEEPALIVE", "NOLIBWRAP",
    "SENSOR", "IPV4", "IPV6", "LABELED",
}  # fmt: skip

# what is told of attributes that become no key, and of flags
TOLD = {
    "banner": "text for every client is for the program to send",
    "banner_success": "text for every client is for the program to send",
    "banner_fail": "copy the file's text to banner-refused",
    "log_type": "superd records every connection; see record-log and record-format",
    "log_on_success": "superd records every connection; see record",
    "log_on_failure": "superd records every refusal; see record",
    "deny_time": "see superd ban",
    "libwrap": "hosts.allow is not asked; see allow and deny",
    "mdns": "superd does not announce its services",
    "rpc_version": "superd has no RPC services",
    "rpc_number": "superd has no RPC services",
    "redirect": "an internal service answers by itself",
    "server": "nothing is run for this service",
    "server_args": "nothing is run for this service",
    "env": "for programs only",
    "passenv": "for programs only",
}
ABOUT_FLAGS = {
    "INTERCEPT": "left out: where wait is set the program takes its clients itself",
    "LABELED": "left out: it has no equivalent",
    "IDONLY": "left out: superd asks no ident server",
    "NORETRY": "left out: superd tries nothing twice",
    "REUSE": "left out: it has no meaning to xinetd either",
    "SENSOR": "nobody is banned, what is sent is only discarded; see superd ban and never-ban",
}


@dataclass
class Value:
    """The words of an attribute, and where it was mentioned last."""

    words: list[str]
    file: str
    line: int
    is_inherited: bool = False


Values = dict[str, Value]


def _word(pattern: str) -> Callable[[list[str]], bool]:
    return lambda words: re.fullmatch(pattern, words[0], re.IGNORECASE) is not None


def _among(known: set[str], *, some: bool = True) -> Callable[[list[str]], bool]:
    return lambda words: (not some or bool(words)) and {w.upper() for w in words} <= known


def _times(words: list[str]) -> bool:
    """Tell whether all are intervals that xinetd takes: none passes midnight, and 24:00 is none."""
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
TAKEN: dict[str, Callable[[list[str]], bool]] = {
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
    "log_on_success": _among({"HOST", "DURATION", "EXIT", "PID", "USERID", "TRAFFIC"}, some=False),
    "log_on_failure": _among({"HOST", "ATTEMPT", "USERID"}, some=False),
    "env": lambda words: all("=" in word for word in words),
}  # fmt: skip


class Gathering:
    """Goes through one section as xinetd does. `rejected` has the attributes for which xinetd
    would not serve.
    """

    def __init__(self, section: Section, inherited: Values, notes: list[Note]) -> None:
        self.section = section
        self.notes = notes
        self.known = OF_A_SERVICE if section.name else OF_THE_DEFAULTS
        self.values: Values = dict(inherited)
        self.rejected: dict[str, int] = {}
        for assignment in section.assignments:
            self._take(assignment)

    def _note(self, line: int, text: str) -> None:
        prefix = f"{self.section.name}: " if self.section.name else ""
        self.notes.append(Note(self.section.file, line, prefix + text))

    def _take(self, one: Assignment) -> None:
        name = "bind" if one.name == "interface" else one.name
        before = self.values.get(name)
        is_new = self._is_new(before)
        count = self.known.get(one.name)
        if count is None:
            is_other = one.name in OF_A_SERVICE and not self.section.name
            why = "has no meaning among the defaults" if is_other else "has no equivalent"
            self._note(one.line, f"left out: {one.name} {why}")
        elif count != LIST and not is_new and before is not None:
            self._note(one.line, f"left out: {one.name} is set already, on line {before.line}")
        elif count != LIST and one.operator != "=":
            self._note(one.line, f"left out: {one.name} {one.operator}: xinetd takes only =")
        elif 0 < count != len(one.words):
            self._note(one.line, f"left out: {one.name} takes {count} and not {len(one.words)}")
        elif not self._is_taken(name, one):
            self.rejected[name] = one.line
            said = " ".join([one.name, one.operator, *one.words])[:70]
            what = "this service" if self.section.name else "anything at all"
            self._note(one.line, f"left out: {said}: with this xinetd does not serve {what}")
        else:
            self.values[name] = Value(
                self._changed(name, one, count, before), self.section.file, one.line
            )

    def _is_new(self, before: Value | None) -> bool:
        """Tell whether this section has not said anything of an attribute so far."""
        return before is None or (before.is_inherited and bool(self.section.name))

    def _is_taken(self, name: str, one: Assignment) -> bool:
        if name in ("only_from", "no_access"):
            try:
                for word in one.words:
                    patterns(word)
            except ValueError:
                return False
        if name == "env" and one.operator == "-=":
            return False
        return TAKEN[name](one.words) if name in TAKEN else True

    def _changed(self, name: str, one: Assignment, count: int, before: Value | None) -> list[str]:
        """Return the words of an attribute after one more line about it."""
        words = one.words
        if name in ("only_from", "no_access"):
            words = self._patterns(name, one)
        old, is_new = before.words if before else [], self._is_new(before)
        operator = one.operator
        if not self.section.name and (operator == "=" or name in ("enabled", "disabled")):
            operator = "+="  # there it means the same
        if count != LIST or operator == "=":
            if old and not is_new and before is not None:
                self._note(before.line, f"left out: {name} is set anew on line {one.line}")
            return words
        if operator == "+=":
            return old + [word for word in words if name != "passenv" or word not in old]
        gone = {word.lower() for word in words}
        return [word for word in old if word.lower() not in gone]

    def _patterns(self, name: str, one: Assignment) -> list[str]:
        found: list[str] = []
        remarks: dict[str, None] = {}
        for word in one.words:
            some, remark = patterns(word)
            found += some
            if remark:
                remarks[remark] = None
        for remark in remarks:
            self._note(one.line, f"{name}: {remark}")
        return found


def with_its_last_minute(window: str) -> str:
    """Return an interval of xinetd, which goes on to the end of its last minute."""
    hours, minutes, last_hour, last_minute = map(int, re.findall(r"\d+", window))
    after = last_hour * 60 + last_minute + 1
    return f"{hours}:{minutes:02}-{after // 60}:{after % 60:02}"


def as_limit(key: str, value: str) -> str | int:
    """Return a limit as superd writes it: M and K are sizes, time is in seconds."""
    if key == "cpu":
        return f"{value}s"
    unit = {"K": 1 << 10, "M": 1 << 20}.get(value[-1].upper())
    if key == "nofile":
        return max(FEWEST_FILES, int(value[:-1]) * unit if unit else int(value))
    return f"{value[:-1]}{value[-1].upper()}iB" if unit else int(value)
