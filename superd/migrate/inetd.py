"""Reads inetd.conf in the dialects of OpenBSD and Debian, FreeBSD, NetBSD and GNU.

Runs in the command line. Never looks at the system, never raises.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re

from superd.migrate.entries import (
    DEFAULT_UMASK,
    INTERNAL,
    NOWAIT_NOTE,
    OWN_GREETING,
    REFLECTION_NOTE,
    WAIT_LIMIT_NOTE,
    Entry,
    Note,
    service_name,
)
from superd.migrate.lines import Line, read_lines
from superd.migrate.programs import name_note

SOCKET_TYPES = {"stream": "tcp", "dgram": "udp", "seqpacket": "unixpacket"}
# by the suffix of the protocol: in the BSDs tcp is IPv4, and tcp46 is both families
HOSTS = {"": "0.0.0.0", "4": "0.0.0.0", "6": "[::]", "46": "*", "6only": "[::]"}  # noqa: S104
FAMILIES = {"": {4}, "4": {4}, "6": {6}, "6only": {6}, "46": {4, 6}}
FREEBSD_LIMITS = ("max-connections", "rate-per-source", "max-per-source")  # in this order
UNIX_TRANSPORTS = {"tcp": "unix", "udp": "unixgram", "unixpacket": "unixpacket"}


def read(text: str, file: str) -> tuple[list[Entry], list[Note]]:
    """Return the services of a file, and a note on each difference."""
    reader = _Reader(file)
    entries = [e for line in read_lines(text, reader.note) if (e := reader.entry(line))]
    serving: dict[tuple[str, ...], Entry] = {}
    for entry in entries:
        addresses = entry.keys["listen"]
        key = (addresses,) if isinstance(addresses, str) else tuple(addresses)
        if (earlier := serving.get(key)) is not None:
            why = f"line {entry.line} repeats its address, and inetd serves the last"
            reader.notes.append(earlier.left_out(why))
        serving[key] = entry
    return entries, reader.notes


class _Reader:
    def __init__(self, file: str) -> None:
        self.file = file
        self.hosts: list[str] = []  # of the last line that has only hosts, for the lines after it
        self.notes: list[Note] = []

    def note(self, line: int, text: str) -> None:
        self.notes.append(Note(self.file, line, text))

    def entry(self, line: Line) -> Entry | None:
        number, words = line.number, line.words
        if len(words) == 1 and words[0].endswith(":"):
            self.hosts = words[0][:-1].split(",")
            return None
        if words[0] == ".include":
            self.note(number, f"left out: {' '.join(words)}; migrate these files separately")
            return None
        if len(words) < 6:
            self.note(number, f"left out: expected at least 6 fields, found {len(words)}")
            return None
        service, kind, protocol, wait, user, program, *arguments = words
        if protocol.startswith("rpc/"):
            self.note(number, f"left out: {service} is an RPC service; superd has none")
            return None
        if kind not in SOCKET_TYPES:
            self.note(number, f"left out: socket type {kind} has no equivalent")
            return None
        name = service.rpartition(":")[2].rpartition("/")[2].lstrip("+")
        if program == "internal" and name not in INTERNAL:
            self.note(number, f"left out: superd has no internal service {name}")
            return None
        listen = self._listen(number, service, kind, protocol)
        if not listen:
            return None
        entry = Entry(service_name(name), self.file, number)
        entry.keys["plugin"] = name if program == "internal" else "exec"
        entry.keys["listen"] = listen if len(listen) > 1 else listen[0]
        self._user(number, entry, user)
        self._wait(number, entry, wait)
        if program == "internal":
            self._internal(number, entry, kind, arguments)
        else:
            self._program(number, entry, kind, program, arguments)
        return entry

    def _listen(self, number: int, service: str, kind: str, protocol: str) -> list[str]:
        """Return the addresses of a service; none, with a note, where superd cannot serve it."""
        transport = SOCKET_TYPES[kind]
        if service.startswith("tcpmux/"):
            if (kind, protocol) != ("stream", "tcp"):
                what = f"expected stream tcp for tcpmux, found {kind} {protocol}"
                self.note(number, f"left out: {what}")
                return []
            name = service.removeprefix("tcpmux/")
            return [f"tcpmux://{name[1:]}" if name[:1] == "+" else f"tcpmux://{name}{OWN_GREETING}"]
        if protocol == "unix":
            if not service.startswith(":"):
                self.note(number, "every user may connect, as in OpenBSD; see mode")
            return [f"{UNIX_TRANSPORTS[transport]}://{_path(service)}"]
        match = re.fullmatch(r"(tcp|udp)(|4|6|46|6only)(?:,.*)?", protocol)
        if match is None or match[1] != transport:
            self.note(number, f"left out: protocol {protocol} does not match socket type {kind}")
            return []
        if "," in protocol:
            self.note(number, f"left out: the buffer sizes of {protocol}; superd has its own")
        if match[2] == "6":
            self.note(number, f"{protocol}: IPv6 only, as in the BSDs; GNU's accepts IPv4, too")
        addresses, colon, port = service.rpartition(":")
        hosts = addresses.split(",") if colon else self.hosts or [""]
        if hosts == [""] or "*" in hosts:
            return [f"{transport}://{HOSTS[match[2]]}:{port}"]
        found = [host for host in hosts if self._is_of(number, host, match[2])]
        if not found:
            self.note(number, f"left out: {service} has no address of the family of {protocol}")
        return [f"{transport}://{_bracketed(host)}:{port}" for host in found]

    def _is_of(self, number: int, host: str, family: str) -> bool:
        """Tell whether a host can have addresses of a family."""
        try:
            version = ipaddress.ip_address(host.strip("[]")).version
        except ValueError:
            if not re.fullmatch("[0-9.]*", host):
                self.note(number, f"{host}: superd listens on every address of this name")
            return bool(host)
        if version not in FAMILIES[family]:
            self.note(number, f"left out: {host} is not an address of this protocol's family")
        return version in FAMILIES[family]

    def _user(self, number: int, entry: Entry, text: str) -> None:
        user, slash, login_class = text.partition("/")
        name, _, group = (user if ":" in user else user.replace(".", ":", 1)).partition(":")
        # an internal service needs no root
        if entry.keys["plugin"] == "exec" or name not in ("root", "0"):
            entry.keys["user"] = name
            if group:
                entry.keys["group"] = group
        if slash:
            self.note(number, f"left out: the login class {login_class}; see rlimits")

    def _wait(self, number: int, entry: Entry, text: str) -> None:
        """Set the keys of `wait` or `nowait`, with a rate a minute or FreeBSD's three limits."""
        word, *numbers = re.split(r"[.:/]", text)
        keys = entry.keys
        if word == "wait":
            keys["wait"] = True
        elif word != "nowait":
            self.note(number, f"expected wait or nowait, found {text}; nowait is assumed")
        is_valid = all(re.fullmatch("[0-9]{0,9}", limit) for limit in numbers)
        if not is_valid or len(numbers) > len(FREEBSD_LIMITS):
            self.note(number, f"left out: the limits of {text}: expected up to 3 numbers")
        elif "/" in text:
            for key, limit in zip(FREEBSD_LIMITS, numbers, strict=False):
                if limit.strip("0"):
                    is_rate = key.startswith("rate")
                    keys[key] = f"{int(limit)}/min" if is_rate else int(limit)
                    if is_rate:
                        keys["burst-per-source"] = int(limit)
            if word == "wait" and keys.pop("max-connections", None) is not None:
                self.note(number, f"{text}: the number is left out: {WAIT_LIMIT_NOTE}")
            if keys.keys() & {"rate-per-source", "max-per-source"}:
                what = "superd counts an IPv6 /64 as one source; see source-netblock"
                self.note(number, f"{text}: {what}")
        elif any(limit.strip("0") for limit in numbers):
            what = f"{text}: superd delays connections above the rate"
            inetd = "inetd closes the port for ten minutes, and OpenBSD's serves one fewer"
            self.note(number, f"{what}; {inetd}")
            for key, limit in zip(("", "-per-source"), numbers, strict=False):
                if limit.strip("0"):
                    keys[f"rate{key}"], keys[f"burst{key}"] = f"{int(limit)}/min", int(limit)
        elif numbers:
            self.note(number, f"left out: {text} has no limit")

    def _internal(self, number: int, entry: Entry, kind: str, arguments: list[str]) -> None:
        entry.keys.pop("wait", None)
        if arguments[1:] or arguments not in ([], [entry.keys["plugin"]]):
            self.note(number, f"left out: arguments of internal: {' '.join(arguments)[:60]}")
        if kind == "dgram" and entry.keys["plugin"] != "discard":
            self.note(number, REFLECTION_NOTE)

    def _program(
        self, number: int, entry: Entry, kind: str, program: str, arguments: list[str]
    ) -> None:
        keys = entry.keys
        keys["umask"] = DEFAULT_UMASK
        if kind == "dgram" and "wait" not in keys:
            self.note(
                number, f"{NOWAIT_NOTE}, as in OpenBSD and NetBSD; other inetds accept only wait"
            )
        command = [program, *arguments[1:]]
        options = {"command": command if len(command) > 1 else program}
        if arguments and arguments[0] not in (program, posixpath.basename(program)):
            options["argv0"] = arguments[0]
            if text := name_note(program, arguments[0]):
                self.note(number, text)
        keys["options"] = options
        if posixpath.basename(program) == "tcpd":
            self.note(number, "tcpd still reads hosts.allow; allow and deny can replace it")


def _path(service: str) -> str:
    """Return the path of a unix socket, with FreeBSD's `:user:group:mode:` as its parameters."""
    before, slash, path = service.partition("/")
    values = [part for part in before.split(":") if part] if before.startswith(":") else []
    pairs = zip(("user", "group", "mode"), values, strict=False)
    query = "&".join(f"{key}={value}" for key, value in pairs)
    return slash + path + (f"?{query}" if query else "")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
