"""Reads inetd.conf, in the dialects of OpenBSD and Debian, FreeBSD, NetBSD and GNU.

Runs in the command line. Never looks at the system, never raises.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re

from superd.migrate.entries import (
    INTERNAL,
    NO_REFLECTION,
    NOWAIT,
    OWN_GREETING,
    UMASK,
    Entry,
    Note,
    service_name,
)
from superd.migrate.lines import Line, read_lines

SOCKET_TYPES = {"stream": "tcp", "dgram": "udp", "seqpacket": "unixpacket"}
# BSD's inetds mean IPv4 by tcp, and both families by tcp46
HOSTS = {"": "0.0.0.0", "4": "0.0.0.0", "6": "[::]", "46": "*", "6only": "[::]"}  # noqa: S104
FAMILIES = {"": {4}, "4": {4}, "6": {6}, "6only": {6}, "46": {4, 6}}
LIMITS = ("max-connections", "rate-per-source", "max-per-source")  # as FreeBSD writes them
UNIX = {"tcp": "unix", "udp": "unixgram", "unixpacket": "unixpacket"}


def read(text: str, file: str) -> tuple[list[Entry], list[Note]]:
    """Return the services of a file, and notes on what is different."""
    reader = _Reader(file)
    entries = [e for line in read_lines(text, reader.note) if (e := reader.entry(line))]
    serving: dict[tuple[str, ...], Entry] = {}
    for entry in entries:
        addresses = entry.keys["listen"]
        key = (addresses,) if isinstance(addresses, str) else tuple(addresses)
        if (earlier := serving.get(key)) is not None:
            why = f"line {entry.line} has its address again, and inetd serves the last"
            reader.notes.append(earlier.left_out(why))
        serving[key] = entry
    return entries, reader.notes


class _Reader:
    def __init__(self, file: str) -> None:
        self.file = file
        self.hosts: list[str] = []  # of a line that says only for which addresses the next ones are
        self.notes: list[Note] = []

    def note(self, line: int, text: str) -> None:
        self.notes.append(Note(self.file, line, text))

    def entry(self, line: Line) -> Entry | None:
        number, words = line.number, line.words
        if len(words) == 1 and words[0].endswith(":"):
            self.hosts = words[0][:-1].split(",")
            return None
        if words[0] == ".include":
            self.note(number, f"left out: {' '.join(words)}; migrate these files on their own")
            return None
        if len(words) < 6:
            self.note(number, f"left out: expected 6 fields at least, found {len(words)}")
            return None
        service, kind, protocol, wait, user, program, *arguments = words
        if protocol.startswith("rpc/"):
            self.note(number, f"left out: {service} is an RPC service, which superd has none of")
            return None
        if kind not in SOCKET_TYPES:
            self.note(number, f"left out: socket type {kind} has no equivalent")
            return None
        name = service.rpartition(":")[2].rpartition("/")[2].lstrip("+")
        if program == "internal" and name not in INTERNAL:
            self.note(number, f"left out: there is no internal service {name}")
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
        """Return the addresses of a service, or nothing where it has none."""
        transport = SOCKET_TYPES[kind]
        if service.startswith("tcpmux/"):
            if (kind, protocol) != ("stream", "tcp"):
                self.note(number, f"left out: {kind} {protocol} is not what comes by tcpmux")
                return []
            name = service.removeprefix("tcpmux/")
            return [f"tcpmux://{name[1:]}" if name[:1] == "+" else f"tcpmux://{name}{OWN_GREETING}"]
        if protocol == "unix":
            if not service.startswith(":"):
                self.note(number, "everybody may connect, as OpenBSD has it; see mode")
            return [f"{UNIX[transport]}://{_path(service)}"]
        match = re.fullmatch(r"(tcp|udp)(|4|6|46|6only)(?:,.*)?", protocol)
        if match is None or match[1] != transport:
            self.note(number, f"left out: protocol {protocol} does not go with {kind}")
            return []
        if "," in protocol:
            self.note(number, f"left out: the buffer sizes of {protocol}; superd has its own")
        if match[2] == "6":
            self.note(number, f"{protocol}: IPv6 only, as to BSD's inetds; GNU's take IPv4, too")
        addresses, colon, port = service.rpartition(":")
        hosts = addresses.split(",") if colon else self.hosts or [""]
        if hosts == [""] or "*" in hosts:
            return [f"{transport}://{HOSTS[match[2]]}:{port}"]
        found = [host for host in hosts if self._is_of(number, host, match[2])]
        if not found:
            self.note(number, f"left out: {service} has no address that {protocol} can have")
        return [f"{transport}://{_bracketed(host)}:{port}" for host in found]

    def _is_of(self, number: int, host: str, family: str) -> bool:
        """Tell whether a host has addresses of a family."""
        try:
            version = ipaddress.ip_address(host.strip("[]")).version
        except ValueError:
            if not re.fullmatch("[0-9.]*", host):
                self.note(number, f"{host}: superd listens on every address of a name")
            return bool(host)
        if version not in FAMILIES[family]:
            self.note(number, f"left out: {host} is of the other family, as inetd has it")
        return version in FAMILIES[family]

    def _user(self, number: int, entry: Entry, text: str) -> None:
        user, slash, login_class = text.partition("/")
        name, _, group = (user if ":" in user else user.replace(".", ":", 1)).partition(":")
        if entry.keys["plugin"] == "exec" or name not in ("root", "0"):  # to answer takes no root
            entry.keys["user"] = name
            if group:
                entry.keys["group"] = group
        if slash:
            self.note(number, f"the login class {login_class} is left out; see rlimits")

    def _wait(self, number: int, entry: Entry, text: str) -> None:
        """wait | nowait, with a number a minute, or FreeBSD's three limits."""
        word, *numbers = re.split(r"[.:/]", text)
        keys = entry.keys
        if word == "wait":
            keys["wait"] = True
        elif word != "nowait":
            self.note(number, f"{text} is neither wait nor nowait; nowait is assumed")
        if not all(re.fullmatch("[0-9]{0,9}", one) for one in numbers) or len(numbers) > len(
            LIMITS
        ):
            self.note(number, f"left out: the limits of {text}; they are not understood")
        elif "/" in text:
            for key, limit in zip(LIMITS, numbers, strict=False):
                if limit.strip("0"):
                    is_rate = key.startswith("rate")
                    keys[key] = f"{int(limit)}/min" if is_rate else int(limit)
                    if is_rate:
                        keys["burst-per-source"] = int(limit)
            if keys.keys() & {"rate-per-source", "max-per-source"}:
                self.note(number, f"{text}: an IPv6 source is a /64 here; see source-netblock")
        elif any(one.strip("0") for one in numbers):
            what = f"{text}: who comes faster waits here; inetd closes the port for ten minutes"
            self.note(number, f"{what}, and OpenBSD's serves one fewer")
            for key, limit in zip(("", "-per-source"), numbers, strict=False):
                if limit.strip("0"):
                    keys[f"rate{key}"], keys[f"burst{key}"] = f"{int(limit)}/min", int(limit)
        elif numbers:
            self.note(number, f"left out: the limit of {text}, which is none")

    def _internal(self, number: int, entry: Entry, kind: str, arguments: list[str]) -> None:
        entry.keys.pop("wait", None)
        if arguments[1:] or arguments not in ([], [entry.keys["plugin"]]):
            self.note(number, f"left out: {' '.join(arguments)[:60]}, given to internal")
        if kind == "dgram" and entry.keys["plugin"] != "discard":
            self.note(number, NO_REFLECTION)

    def _program(
        self, number: int, entry: Entry, kind: str, program: str, arguments: list[str]
    ) -> None:
        keys = entry.keys
        keys["umask"] = UMASK
        if kind == "dgram" and "wait" not in keys:
            self.note(
                number, f"{NOWAIT}, as to OpenBSD's and NetBSD's inetd; others take only wait"
            )
        command = [program, *arguments[1:]]
        options = {"command": command if len(command) > 1 else program}
        if arguments and arguments[0] not in (program, posixpath.basename(program)):
            options["argv0"] = arguments[0]
        keys["options"] = options
        if posixpath.basename(program) == "tcpd":
            self.note(number, "tcpd goes on to ask hosts.allow; allow and deny could do it here")


def _path(service: str) -> str:
    """Return the path of a unix socket, with what FreeBSD's `:user:group:mode:` says before it."""
    before, slash, path = service.partition("/")
    named = [part for part in before.split(":") if part] if before.startswith(":") else []
    pairs = zip(("user", "group", "mode"), named, strict=False)
    query = "&".join(f"{key}={value}" for key, value in pairs)
    return slash + path + (f"?{query}" if query else "")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
