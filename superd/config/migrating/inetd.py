"""Reads inetd.conf, in the dialects of OpenBSD and Debian, FreeBSD, NetBSD and GNU.

Runs in the command line. Never looks at the system. Raises ValueError for a file that is no text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from superd.config.migrating.entries import INTERNAL, Entry, Note, service_name

SOCKET_TYPES = {"stream": "tcp", "dgram": "udp", "seqpacket": "unixpacket"}
# BSD's inetds mean IPv4 by tcp, and both families by tcp46
HOSTS = {"": "0.0.0.0", "4": "0.0.0.0", "6": "[::]", "46": "*", "6only": "[::]"}  # noqa: S104
LIMITS = ("max-connections", "rate-per-source", "max-per-source")  # as FreeBSD writes them
UNIX = {"tcp": "unix", "udp": "unixgram", "unixpacket": "unixpacket"}


def read(text: str, file: str) -> tuple[list[Entry], list[Note]]:
    """Return the services of a file, and notes on what is different."""
    reader = _Reader(file)
    entries = [entry for line in _lines(text) if (entry := reader.entry(*line)) is not None]
    return entries, reader.notes


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


class _Reader:
    def __init__(self, file: str) -> None:
        self.file = file
        self.hosts: list[str] = []  # of a line that says only for which addresses the next ones are
        self.notes: list[Note] = []

    def note(self, line: int, text: str) -> None:
        self.notes.append(Note(self.file, line, text))

    def entry(self, number: int, line: str) -> Entry | None:
        words = line.split("#", 1)[0].split() if " #" in line else line.split()
        if len(words) == 1 and words[0].endswith(":"):
            self.hosts = [host for host in words[0][:-1].split(",") if host != "*"]
            return None
        if len(words) < 6:
            self.note(number, f"left out: expected 6 fields at least, found {len(words)}")
            return None
        service, kind, protocol, wait, user, program, *arguments = words
        if kind not in SOCKET_TYPES:
            self.note(number, f"left out: socket type {kind} has no equivalent")
            return None
        if protocol.startswith("rpc/"):
            self.note(number, f"left out: {service} is an RPC service, which superd has none of")
            return None
        if service.startswith("tcpmux/"):
            self.note(number, f"left out: {service} is reached by tcpmux, which superd lacks")
            return None
        listen = self._listen(number, service, kind, protocol)
        if listen is None:
            return None
        name = service.rpartition(":")[2].rpartition("/")[2]
        entry = Entry(service_name(name), f"{self.file}:{number}")
        entry.keys["plugin"] = "exec"
        entry.keys["listen"] = listen if len(listen) > 1 else listen[0]
        self._user(number, entry, user)
        self._wait(number, entry, wait)
        if program == "internal":
            return self._internal(number, entry, name, kind)
        command = [program, *arguments[1:]]
        entry.keys["options"] = {"command": command if len(command) > 1 else program}
        if arguments and arguments[0] not in (program, posixpath.basename(program)):
            entry.keys["options"]["argv0"] = arguments[0]
        if posixpath.basename(program) == "tcpd":
            self.note(number, "tcpd goes on to ask hosts.allow; allow and deny could do it here")
        return entry

    def _listen(self, number: int, service: str, kind: str, protocol: str) -> list[str] | None:
        """Return the addresses of a service."""
        transport = SOCKET_TYPES[kind]
        match = re.fullmatch(r"(tcp|udp)(|4|6|46|6only)(?:,.*)?", protocol)
        if service.startswith("/") or protocol == "unix":
            path = service.split(":")[-1]
            return [f"{UNIX[transport]}://{path}"]
        if match is None or match[1] != transport:
            self.note(number, f"left out: protocol {protocol} does not go with {kind}")
            return None
        if "," in protocol:
            self.note(number, f"left out: the buffer sizes of {protocol}; superd has its own")
        addresses, colon, port = service.rpartition(":")
        hosts = addresses.split(",") if colon else self.hosts
        return [f"{transport}://{_host(host)}:{port}" for host in hosts or [HOSTS[match[2]]]]

    def _user(self, number: int, entry: Entry, text: str) -> None:
        user, slash, login_class = text.partition("/")
        name, _, group = re.sub(r"[:.]", ":", user, count=1).partition(":")
        entry.keys["user"] = name
        if group:
            entry.keys["group"] = group
        if slash:
            self.note(number, f"the login class {login_class} is left out; see rlimits")

    def _wait(self, number: int, entry: Entry, text: str) -> None:
        """wait | nowait, with a number a minute, or FreeBSD's three limits."""
        word, dot, rate = text.partition(".")
        if dot:
            entry.keys["rate"] = f"{rate}/min"
            self.note(number, f"{text}: who comes faster waits here; OpenBSD's serves one fewer")
        word, *limits = word.split("/")
        for key, limit in zip(LIMITS, limits, strict=False):
            if limit not in ("", "0"):
                entry.keys[key] = f"{limit}/min" if key.startswith("rate") else int(limit)
        if word == "wait":
            entry.keys["wait"] = True
        elif word != "nowait":
            self.note(number, f"{text} is neither wait nor nowait; nowait is assumed")

    def _internal(self, number: int, entry: Entry, name: str, kind: str) -> Entry | None:
        if name not in INTERNAL:
            self.note(number, f"left out: there is no internal service {name}")
            return None
        entry.keys["plugin"] = name
        entry.keys.pop("wait", None)
        if kind == "dgram":
            self.note(
                number,
                "over udp superd answers no ports below 1024 and never with more bytes than it"
                " was asked with; see amplify and reflection-guard",
            )
        return entry


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
