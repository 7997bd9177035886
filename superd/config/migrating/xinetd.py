"""Reads xinetd.conf and the files that it includes: every attribute of xinetd 2.3.15.

Runs in the command line. What becomes of an attribute stands in `_Service`; what is not looked at
there is told. Raises OSError for a file that cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from superd.config.migrating.entries import INTERNAL, Entry, Note, service_name

LISTS = ("only_from", "no_access", "log_on_success", "log_on_failure", "passenv", "env", "enabled",
         "disabled")  # fmt: skip
# what [defaults] may have, for services that do not say otherwise
OF_DEFAULTS = (
    "instances", "only_from", "no_access", "passenv", "bind", "interface", "banner_fail",
    "banner_success", "per_source", "cps", "max_load", "umask", "v6only", "log_type",
    "log_on_success", "log_on_failure",
)  # fmt: skip
RLIMITS = {"rlimit_as": "memory", "rlimit_cpu": "cpu", "rlimit_files": "nofile"}


@dataclass
class Section:
    """A service or the defaults, with the line of each attribute's last mention."""

    name: str
    file: str
    line: int
    values: dict[str, list[str]] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)


def read(path: Path) -> tuple[list[Entry], list[Note]]:
    """Return the services of a file or a directory of files, and notes on what is different."""
    notes: list[Note] = []
    files = _included(path) if path.is_dir() else [path]
    sections = [section for file in files for section in _sections(file, notes, depth=0)]
    defaults = Section("defaults", str(path), 1)
    for section in sections:
        if section.name == "defaults":
            defaults.values |= section.values
            defaults.lines |= section.lines
            defaults.file = section.file
    _tell_of_defaults(defaults, notes)
    entries = []
    for section in sections:
        if section.name != "defaults":
            entry = _Service(section, defaults, notes).entry()
            if entry is not None:
                entries.append(entry)
    return entries, notes


def _included(directory: Path) -> list[Path]:
    """Return the files that `includedir` means."""
    files = (path for path in directory.iterdir() if path.is_file())
    return sorted(path for path in files if "." not in path.name and not path.name.endswith("~"))


def _sections(file: Path, notes: list[Note], depth: int) -> Iterator[Section]:
    current: Section | None = None
    text = file.read_bytes().decode(errors="backslashreplace")
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        words = line.split()
        if words[0] in ("include", "includedir") and len(words) == 2 and current is None:
            yield from _of_include(
                words[0], Path(file.parent, words[1]), file, number, notes, depth
            )
        elif words[0] in ("service", "defaults") and current is None:
            name = words[1] if len(words) > 1 and words[1] != "{" else words[0]
            current = Section(name, str(file), number)
        elif line == "{" and current is not None:
            continue
        elif line == "}" and current is not None:
            yield current
            current = None
        elif current is not None and (match := re.match(r"(\w+)\s*(\+=|-=|=)\s*(.*)", line)):
            _assign(current, match[1].lower(), match[2], match[3].split(), number)
        else:
            notes.append(Note(str(file), number, f"left out: this is not understood: {line[:60]}"))
    if current is not None:
        notes.append(Note(str(file), current.line, f"{current.name} has no closing brace"))
        yield current


def _of_include(
    word: str, target: Path, file: Path, number: int, notes: list[Note], depth: int
) -> Iterator[Section]:
    try:
        files = [target] if word == "include" else _included(target)
        if depth >= 5:
            raise OSError("includes are too deep")
        for one in files:
            yield from _sections(one, notes, depth + 1)
    except OSError as error:
        notes.append(
            Note(str(file), number, f"left out: {word} {target}: {error.strerror or error}")
        )


def _assign(section: Section, name: str, operator: str, values: list[str], number: int) -> None:
    section.lines[name] = number
    before = section.values.get(name, [])
    if operator == "=":
        values = before + values if name == "env" else values
    elif operator == "+=":
        values = before + values
    else:
        values = [value for value in before if value not in values]
    section.values[name] = values


def _tell_of_defaults(defaults: Section, notes: list[Note]) -> None:
    for name in ("log_type", "log_on_success", "log_on_failure"):
        if name in defaults.values:
            text = f"{name}: superd records every connection; see record-log and record-format"
            notes.append(Note(defaults.file, defaults.lines[name], text))
    for name in defaults.values.keys() - set(OF_DEFAULTS) - {"enabled", "disabled"}:
        text = f"left out: {name} has no meaning among the defaults"
        notes.append(Note(defaults.file, defaults.lines[name], text))


class _Service:
    """Turns one section into an entry. Attributes that were looked at are taken off the list; what
    is left in the end is told.
    """

    def __init__(self, section: Section, defaults: Section, notes: list[Note]) -> None:
        self.section = section
        self.notes = notes
        inherited = {n: v for n, v in defaults.values.items() if n in OF_DEFAULTS}
        self.values = {**inherited, **section.values}
        for name in ("log_type", "log_on_success", "log_on_failure"):
            if name not in section.values:
                self.values.pop(name, None)  # told with the defaults
        self.enabled = defaults.values.get("enabled")
        self.disabled = defaults.values.get("disabled", [])
        identity = (section.values.get("id") or [section.name])[0]
        self.made = Entry(service_name(identity), f"{section.file}:{section.line}")
        self.identity = identity

    def entry(self) -> Entry | None:
        kinds = {kind.upper() for kind in self._take("type")}
        kind = self._one("socket_type") or "stream"
        if kinds & {"RPC"} or kind == "raw" or kinds & {"TCPMUX", "TCPMUXPLUS"}:
            what = "RPC" if "RPC" in kinds else "raw" if kind == "raw" else "tcpmux"
            self._note(f"left out: superd has no {what} services", "type")
            return None
        keys = self.made.keys
        is_internal = "INTERNAL" in kinds
        name = self.section.name
        if is_internal and name not in INTERNAL:
            self._note(f"left out: there is no internal service {name} (servers, services, ...)")
            return None
        keys["plugin"] = name if is_internal else "exec"
        if redirect := self._take("redirect"):
            self._note(f"left out: redirect to {' '.join(redirect)} needs the plugin forward")
            return None
        keys["listen"] = self._listen(kind)
        self._switches()
        self._identity()
        if not is_internal:
            self._program()
        self._access()
        self._limits()
        self._rest(is_internal=is_internal)
        return self.made

    def _note(self, text: str, attribute: str = "") -> None:
        line = self.section.lines.get(attribute, self.section.line)
        self.notes.append(Note(self.section.file, line, f"{self.identity}: {text}"))

    def _take(self, name: str) -> list[str]:
        return self.values.pop(name, [])

    def _one(self, name: str) -> str:
        return " ".join(self._take(name))

    def _listen(self, kind: str) -> str:
        port = self._one("port") or self.section.name
        protocol = self._one("protocol") or ("udp" if kind == "dgram" else "tcp")
        flags = {flag.upper() for flag in self.values.get("flags", [])}
        bind = self._one("bind") or self._one("interface")
        only_v6 = self._one("v6only")
        host = f"[{bind}]" if ":" in bind else bind
        if not host:
            host = "[::]" if "IPV6" in flags else "0.0.0.0" if "IPV4" in flags else "*"  # noqa: S104
        if only_v6:
            self._note("v6only: sockets of superd have one family each", "v6only")
        transport = "udp" if protocol.startswith("udp") else "tcp"
        return f"{transport}://{host}:{port}"

    def _switches(self) -> None:
        off = self._one("disable").lower() in ("yes", "true", "on")
        if self.enabled is not None and self.identity not in self.enabled:
            off = True
        if off or self.identity in self.disabled:
            self.made.keys["enabled"] = False
        if (
            self._one("wait").lower() in ("yes", "true", "on")
            and self.made.keys["plugin"] == "exec"
        ):
            self.made.keys["wait"] = True
        for flag in self._take("flags"):
            self._flag(flag.upper())

    def _flag(self, flag: str) -> None:
        keys = self.made.keys
        if flag == "SENSOR":
            self._note(
                "left out: flag SENSOR; a ban does it: see superd ban and never-ban", "flags"
            )
        elif flag == "NAMEINARGS":
            self.names_itself = True
        elif flag == "INTERCEPT":
            self._note("flag INTERCEPT: only the first packet is judged where wait is set", "flags")
        elif flag == "LABELED":
            self._note("left out: flag LABELED has no equivalent", "flags")
        elif flag in ("NODELAY", "KEEPALIVE"):
            keys[flag.lower()] = True
        elif flag not in ("NORETRY", "IDONLY", "NOLIBWRAP", "IPV4", "IPV6", "REUSE"):
            self._note(f"left out: there is no flag {flag}", "flags")
        elif flag == "IDONLY":
            self._note("left out: flag IDONLY; superd asks no ident server", "flags")

    names_itself = False

    def _identity(self) -> None:
        keys = self.made.keys
        if user := self._one("user"):
            keys["user"] = int(user) if user.isdigit() else user
        if group := self._one("group"):
            keys["group"] = int(group) if group.isdigit() else group
        if self._one("groups").lower() in ("yes", "true", "on"):
            self._note("groups = yes: name the user's groups in groups = [...]", "groups")
        if umask := self._one("umask"):
            keys["umask"] = umask.rjust(3, "0")[-4:]
        if nice := self._one("nice"):
            keys["nice"] = int(nice)
        limits: dict[str, str | int] = {}
        for attribute, key in RLIMITS.items():
            value = self._one(attribute)
            if value and value.upper() != "UNLIMITED":
                limits[key] = _limit(key, value)
        if limits:
            keys["rlimits"] = limits

    def _program(self) -> None:
        server, arguments = self._one("server"), self._take("server_args")
        options: dict[str, object] = {}
        if self.names_itself and arguments:
            options["argv0"], *arguments = arguments
        options["command"] = [server, *arguments] if arguments else server
        variables = dict(pair.partition("=")[::2] for pair in self._take("env"))
        if variables:
            options["env"] = variables
        if "passenv" in self.values:
            options["pass-env"] = self._take("passenv")
        else:
            self._note("xinetd passes on all of its environment; here it takes pass-env")
        self.made.keys["options"] = options

    def _access(self) -> None:
        for attribute, key in (("only_from", "allow"), ("no_access", "deny")):
            if attribute in self.values:
                found = [p for text in self._take(attribute) for p in self._patterns(text)]
                self.made.keys[key] = found
        if {"allow", "deny"} <= self.made.keys.keys():
            self._note("only_from and no_access: xinetd refuses who is in both; superd goes by the"
                       " more specific of the two", "no_access")  # fmt: skip
        if windows := self._take("access_times"):
            self.made.keys["access-times"] = windows
            self._note("access_times: the last minute is not part of it here", "access_times")

    def _patterns(self, text: str) -> list[str]:
        """Return what an address of xinetd means: zeros at its end are anything."""
        factorised = re.fullmatch(r"([\d.]*)\{([\d,]+)\}", text)
        if factorised:
            return [p for n in factorised[2].split(",") for p in self._patterns(factorised[1] + n)]
        if re.fullmatch(r"\d+(\.\d+){0,3}", text):
            numbers = text.split(".")
            numbers += ["0"] * (4 - len(numbers))
            while numbers and numbers[-1] == "0":
                numbers.pop()
            bits, numbers = len(numbers) * 8, numbers + ["0"] * (4 - len(numbers))
            address = ".".join(numbers)
            return ["0.0.0.0/0", "::/0"] if not bits else [f"{address}/{bits}"]
        return [text]

    def _limits(self) -> None:
        keys = self.made.keys
        for attribute, key in (("instances", "max-connections"), ("per_source", "max-per-source")):
            value = self._one(attribute)
            if value and value.upper() != "UNLIMITED":
                keys[key] = int(value)
        if "max-connections" in keys:
            keys["on-limit"] = "reject"
        if rate := self._take("cps"):
            keys["rate"] = f"{rate[0].split('.')[0]}/s"
            self._note("cps: superd never closes the port; who comes too fast is refused", "cps")
        if load := self._one("max_load"):
            keys["max-load"] = float(load)

    def _rest(self, *, is_internal: bool) -> None:
        """Tell of everything that is left."""
        told = {
            "banner": "banner: text for every client is for the program to send",
            "banner_success": "banner_success: text for every client is for the program to send",
            "banner_fail": "banner_fail: copy the file's text to banner-refused",
            "log_type": "log_type: superd records every connection; see record-log",
            "log_on_success": "log_on_success: superd records every connection; see record",
            "log_on_failure": "log_on_failure: superd records every refusal; see record",
            "deny_time": "deny_time: see superd ban",
            "libwrap": "libwrap: hosts.allow is not asked; see allow and deny",
            "mdns": "mdns: superd does not announce its services",
            "rpc_version": "rpc_version: superd has no RPC services",
            "rpc_number": "rpc_number: superd has no RPC services",
        }
        self.values.pop("id", None)
        for name in self.values:
            if is_internal and name in ("server", "server_args", "passenv", "env"):
                continue
            self._note(f"left out: {told.get(name, f'{name} has no equivalent')}", name)


def _limit(key: str, value: str) -> str | int:
    """Return a limit as superd writes it: M and K are sizes, time is in seconds."""
    if key == "cpu":
        return f"{value}s"
    if key == "nofile":
        return max(16, int(value))
    return f"{value[:-1]}{value[-1].upper()}iB" if value[-1].upper() in "KM" else int(value)
