"""Reads xinetd.conf and the files that it includes: every attribute of xinetd 2.3.15.

Runs in the command line. `_Service` converts the attributes, and adds a note on each that is left.
A service that xinetd would not serve becomes an entry that is not enabled. Raises OSError for a
file that cannot be read.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

from superd.migrate.addresses import is_name, overridden, target
from superd.migrate.attributes import (
    ATTRIBUTE_NOTES,
    FLAG_NOTES,
    INHERITED_IN_ORDER,
    MIN_NOFILE,
    SectionValues,
    Value,
    Values,
    half_open_window,
    limit_value,
)
from superd.migrate.conversion import Conversion
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
from superd.migrate.programs import name_note, supplementary_groups
from superd.migrate.sections import Section, read_sections

TRANSPORTS = {("stream", "tcp"): "tcp", ("dgram", "udp"): "udp"}
LONGEST_BAN_MINUTES = 365 * 24 * 60
RLIMITS = {"rlimit_as": "memory", "rlimit_cpu": "cpu", "rlimit_files": "nofile"}


def read(path: Path) -> tuple[list[Entry], list[Note]]:
    """Return the services of a file or a directory of files, and a note on each difference."""
    notes: list[Note] = []
    defaults: Values = {}
    services: list[tuple[Section, Values]] = []
    is_rejected = False
    for section in read_sections(path, notes):
        if section.name:
            in_order = {n: v for n, v in defaults.items() if n in INHERITED_IN_ORDER}
            services.append((section, in_order))
        else:
            gathered = SectionValues(section, defaults, notes)
            defaults, is_rejected = gathered.values, is_rejected or bool(gathered.rejected)
            for name in INHERITED_IN_ORDER:
                if services and name in defaults:
                    text = f"{name} applies only to the services after this line"
                    notes.append(Note(section.file, defaults[name].line, text))
    at_end = {n: v for n, v in defaults.items() if n not in (*INHERITED_IN_ORDER, "v6only")}
    made = []
    for section, in_order in services:
        inherited = {
            name: Value(value.words, value.file, value.line, is_inherited=True)
            for name, value in (at_end | in_order).items()
        }
        made.append(_Service(section, inherited, notes, is_rejected=is_rejected))
    entries = [entry for service in made if (entry := service.entry()) is not None]
    _note_defaults(defaults, {service.identity.lower() for service in made}, notes)
    return entries, list(dict.fromkeys(notes))


def _note_defaults(defaults: Values, identities: set[str], notes: list[Note]) -> None:
    """Add a note on each part of the defaults that has no effect."""
    if value := defaults.get("v6only"):
        notes.append(Note(value.file, value.line, "left out: v6only has no effect in the defaults"))
    for name in ("enabled", "disabled"):
        if value := defaults.get(name):
            unknown = [one for one in value.words if one.lower() not in identities]
            text = f"{name}: there is no service with the id"
            notes += [Note(value.file, value.line, f"{text} {one}") for one in unknown]


class _Service(Conversion):
    """Converts one section to an entry."""

    def __init__(
        self, section: Section, inherited: Values, notes: list[Note], *, is_rejected: bool
    ) -> None:
        super().__init__(section, inherited, notes, is_rejected=is_rejected)
        self.enabled = self._take("enabled") if "enabled" in self.values else None
        self.disabled = self._take("disabled")
        self.types = {word.upper() for word in self._take("type")}
        self.flags = {word.upper() for word in self._take("flags")}
        self.is_sensor = "SENSOR" in self.flags
        self.is_internal = "INTERNAL" in self.types or self.is_sensor
        self.is_redirect = "redirect" in self.given and not self.is_internal
        self.is_program = not (self.is_internal or self.is_redirect)
        self.result = Entry(service_name(self.identity), section.file, section.line)

    def entry(self) -> Entry | None:
        if self._is_unsupported():
            return None
        self._plugin()
        transport = self._transport()
        if transport is None:
            return None
        if self.types & {"TCPMUX", "TCPMUXPLUS"}:
            text = "its limits apply to clients of tcpmux, too; xinetd applies none to them"
            self._note(text, "type")
            greeting = "" if "TCPMUXPLUS" in self.types else OWN_GREETING
            self.result.keys["listen"] = f"tcpmux://{self.section.name}{greeting}"
        else:
            self.result.keys["listen"] = self._listen(transport)
        self._identity()
        if self.is_program:
            self._program()
        elif self.is_sensor:
            self._sensor(transport)
        elif self.is_redirect:
            self._redirect(transport)
        self._access()
        self._limits()
        self._switches(transport)
        self._note_unused()
        return self.result

    def _is_unsupported(self) -> bool:
        name, kind = self.section.name, " ".join(self._words("socket_type")).lower()
        for what, is_so in (
            ("RPC", "RPC" in self.types),
            (kind, kind in ("raw", "seqpacket")),
        ):
            if is_so:
                self._note(f"left out: superd has no {what} services", "type")
                return True
        if not self.is_sensor and self.is_internal and name.lower() not in INTERNAL:
            text = f"left out: superd has no internal service {name}"
            self._note(text, "type")
            return True
        return False

    def _plugin(self) -> None:
        plugin = "exec" if self.is_program else "forward"
        if self.is_internal:
            plugin = self.section.name.lower()
        self.result.keys["plugin"] = "sniffer" if self.is_sensor else plugin

    def _transport(self) -> str | None:
        kind, protocol = self._text("socket_type").lower(), self._text("protocol").lower()
        if not kind and not protocol:
            self._disable("it has neither socket_type nor protocol")
        kind = kind or {"udp": "dgram"}.get(protocol, "stream")
        protocol = protocol or {"dgram": "udp"}.get(kind, "tcp")
        transport = TRANSPORTS.get((kind, protocol))
        if transport is None:
            text = f"left out: protocol {protocol} does not match socket type {kind}"
            self._note(text, "protocol")
        return transport

    def _listen(self, transport: str) -> str:
        given, name = self._text("port"), self.section.name
        if "UNLISTED" not in self.types:
            listed = _listed_port(name, transport)
            if listed is None:
                self._disable(f"{name} is not in /etc/services, and type is not UNLISTED", "port")
            elif given and int(given) != listed:
                why = f"the port of {name} is {listed}, and type is not UNLISTED"
                self._disable(why, "port")
        elif not given:
            self._disable("type = UNLISTED needs a port", "type")
        bind = self._text("bind")
        if bind and not bind.replace(".", "").isdecimal() and ":" not in bind:
            self._note("bind: superd listens on every address of this name", "bind")
        host = f"[{bind}]" if ":" in bind else bind
        only_v6 = self._text("v6only").lower()
        if only_v6 == "no":
            self._note("v6only = no: xinetd reads it as yes, so the service is IPv6 only", "v6only")
        if not host:
            host = "0.0.0.0" if self.flags & {"IPV4", "IPV6"} == {"IPV4"} else "[::]"  # noqa: S104
        if host == "[::]" and not only_v6:
            host = "*"  # xinetd's socket accepts IPv4, too
        return f"{transport}://{host}:{given or name}"

    def _identity(self) -> None:
        keys = self.result.keys
        user, group = self._text("user"), self._text("group")
        if not self.is_program and user in ("root", "0"):
            user = group = ""  # answering and forwarding need no root
        if user:
            keys["user"] = _id_or_name(user)
        if group:
            keys["group"] = _id_or_name(group)
        if self._is_yes("groups"):
            self._groups(user)
        umask = self._text("umask")
        if umask or self.is_program:
            keys["umask"] = f"{int(umask or DEFAULT_UMASK, 8):03o}"
        if nice := self._text("nice"):
            keys["nice"] = max(-20, min(19, int(nice)))
        self._rlimits()

    def _groups(self, user: str) -> None:
        """Write the supplementary groups that the user has on this machine."""
        groups = supplementary_groups(user)
        if groups:
            self.result.keys["groups"] = groups
            text = f"written as the groups that {user} has on this machine"
        elif groups is None:
            text = f"this machine has no user {user}; list its groups in groups = [...]"
        else:
            text = "the user has no other group on this machine"
        self._note(f"groups = yes: {text}", "groups")

    def _rlimits(self) -> None:
        limits: dict[str, str | int] = {}
        for attribute, key in RLIMITS.items():
            value = self._text(attribute)
            if value and value.upper() != "UNLIMITED":
                limits[key] = limit_value(key, value)
                self._note(f"{attribute} limits superd's worker, too", attribute)
                if limits[key] == MIN_NOFILE and value != str(MIN_NOFILE):
                    text = f"{attribute}: raised to {MIN_NOFILE}, superd's minimum"
                    self._note(text, attribute)
        if limits:
            self.result.keys["rlimits"] = limits

    def _program(self) -> None:
        server, arguments = self._text("server"), self._take("server_args")
        options: dict[str, Any] = {}
        if "NAMEINARGS" in self.flags:
            if arguments:
                options["argv0"], *arguments = arguments
                if text := name_note(server, options["argv0"]):
                    self._note(text, "server_args")
            else:
                self._disable("flag NAMEINARGS needs server_args", "flags")
        options["command"] = [server, *arguments] if arguments else server
        variables = dict(pair.partition("=")[::2] for pair in self._take("env"))
        if variables:
            options["env"] = variables
        if "passenv" in self.values:
            options["pass-env"] = self._take("passenv")
        else:
            self._note("xinetd passes on its whole environment; superd passes on only pass-env")
        self.result.keys["options"] = options
        for attribute in ("server", "user"):
            if not self._words(attribute):
                self._disable(f"it has no {attribute}")

    def _redirect(self, transport: str) -> None:
        address, note = target(*self._take("redirect"))
        self.result.keys["options"] = {"to": f"{transport}://{address}"}
        if note:
            self._note(f"redirect: {note}", "redirect")
        if transport != "tcp":
            self._disable("xinetd redirects tcp only", "redirect")
        if " ".join(self._words("wait")).lower() == "yes":
            self._disable("redirect needs wait = no", "wait")
        if not self._words("user"):
            self._disable("it has no user")

    def _sensor(self, transport: str) -> None:
        """Have the sniffer ban each client for the minutes of deny_time."""
        span = self._text("deny_time").upper()
        if span in ("", "NEVER") or not span.strip("0"):
            return
        if transport == "udp":
            self._note("deny_time: superd bans no source of datagrams, as it may be forged",
                       "deny_time")  # fmt: skip
            return
        if span == "FOREVER" or span.startswith("-"):
            span = str(LONGEST_BAN_MINUTES)
            self._note("deny_time: a ban lasts a year at most, but also over restarts", "deny_time")
        minutes = min(int(span), LONGEST_BAN_MINUTES)
        self.result.keys["options"] = {"ban": {"after": 1, "for": f"{minutes}m"}}

    def _access(self) -> None:
        keys = self.result.keys
        allow = self._take("only_from") if "only_from" in self.values else None
        deny = self._take("no_access")
        for pattern in overridden(allow or [], deny):
            assert allow is not None  # the pattern comes from it
            allow = [one for one in allow if one != pattern]
            text = (
                f"{pattern} of only_from is left out: xinetd obeys the wider network of no_access"
            )
            self._note(text, "only_from")
        if allow is not None:
            keys["allow"] = allow
        if deny:
            keys["deny"] = deny
        if allow and deny and any(is_name(pattern) for pattern in allow + deny):
            self._note("only_from and no_access: xinetd refuses a client that matches both; superd"
                       " applies the more specific of the two", "no_access")  # fmt: skip
        if windows := self._take("access_times"):
            keys["access-times"] = [half_open_window(window) for window in windows]

    def _limits(self) -> None:
        keys = self.result.keys
        for attribute, key in (("instances", "max-connections"), ("per_source", "max-per-source")):
            value = self._text(attribute).upper()
            if value and not value.strip("0"):
                self._disable(f"{attribute} = 0 admits no client", attribute)
            elif value not in ("", "UNLIMITED"):
                keys[key] = int(value)
        if "max-connections" in keys:
            keys["on-limit"] = "reject"
        if "max-per-source" in keys:
            text = "per_source: superd counts an IPv6 /64 as one source; see source-netblock"
            self._note(text, "per_source")
        rate, *seconds = self._take("cps") or ("0",)
        if int(rate):
            keys["rate"] = f"{int(rate)}/s"
            text = (
                f"cps: superd never closes the port (xinetd: {' '.join(seconds)} s); connections"
                " above the rate are refused or, without instances, delayed"
            )
            self._note(text, "cps")
        if load := self._text("max_load"):
            keys["max-load"] = float(load)

    def _switches(self, transport: str) -> None:
        keys = self.result.keys
        wait = self._text("wait").lower()
        if not wait:
            self._disable("it has no wait")
        elif transport == "udp" and wait == "no" and self.is_program:
            self._note(f"wait = no: {NOWAIT_NOTE}", "wait")
        if self.is_internal and transport == "udp" and keys["plugin"] not in ("discard", "sniffer"):
            self._note(REFLECTION_NOTE)
        elif self.is_program and wait == "yes":
            keys["wait"] = True
            if "max-connections" in keys:
                del keys["max-connections"], keys["on-limit"]
                self._note(f"instances is left out: {WAIT_LIMIT_NOTE}", "wait")
            if transport == "tcp" and keys.keys() & {"allow", "deny"}:
                self._note("wait: allow and deny do not apply to what the program accepts", "wait")
        is_counted = "TRAFFIC" in {word.upper() for word in self._words("log_on_success")}
        if is_counted and "redirect" not in self.given:
            self._disable("log_on_success = TRAFFIC needs redirect", "log_on_success")
        for flag in ("NODELAY", "KEEPALIVE"):
            if flag in self.flags:
                keys[flag.lower()] = True
        for flag in sorted(self.flags & FLAG_NOTES.keys()):
            self._note(f"flag {flag}: {FLAG_NOTES[flag]}", "flags")
        if not self.is_program and "NAMEINARGS" in self.flags:
            self._disable("flag NAMEINARGS applies to programs only", "flags")
        is_listed = _contains(self.enabled, self.identity)
        is_disabled = self._is_yes("disable") or is_listed is False
        if is_disabled or _contains(self.disabled, self.identity) or self.is_rejected:
            self.result.keys["enabled"] = False

    def _note_unused(self) -> None:
        """Add a note on each attribute that is left."""
        for name in self.values:
            why = ATTRIBUTE_NOTES.get(name, "it has no equivalent")
            self._note(f"left out: {name}: {why}", name)


def _listed_port(name: str, transport: str) -> int | None:
    """Return the port of a name in /etc/services."""
    try:
        return socket.getservbyname(name, transport)
    except (OSError, ValueError):
        return None


def _id_or_name(text: str) -> int | str:
    return int(text) if re.fullmatch("[0-9]{1,10}", text) else text


def _contains(identities: list[str] | None, one: str) -> bool | None:
    if identities is None:
        return None
    return one.lower() in {identity.lower() for identity in identities}
