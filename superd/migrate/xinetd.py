"""Reads xinetd.conf and the files that it includes: every attribute of xinetd 2.3.15.

Runs in the command line. What becomes of an attribute stands in `_Service`; what is not looked at
there is told. What xinetd would not serve is not enabled. Raises OSError for a file that cannot be
read.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

from superd.migrate.addresses import is_name, overruled, target
from superd.migrate.attributes import (
    ABOUT_FLAGS,
    AT_ONCE,
    FEWEST_FILES,
    TOLD,
    Gathering,
    Value,
    Values,
    as_limit,
    with_its_last_minute,
)
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
from superd.migrate.sections import Section, read_sections

TRANSPORTS = {("stream", "tcp"): "tcp", ("dgram", "udp"): "udp"}
RLIMITS = {"rlimit_as": "memory", "rlimit_cpu": "cpu", "rlimit_files": "nofile"}


def read(path: Path) -> tuple[list[Entry], list[Note]]:
    """Return the services of a file or a directory of files, and notes on what is different."""
    notes: list[Note] = []
    defaults: Values = {}
    services: list[tuple[Section, Values]] = []
    is_refused = False
    for section in read_sections(path, notes):
        if section.name:
            services.append((section, {n: v for n, v in defaults.items() if n in AT_ONCE}))
        else:
            gathered = Gathering(section, defaults, notes)
            defaults, is_refused = gathered.values, is_refused or bool(gathered.rejected)
            for name in AT_ONCE:
                if services and name in defaults:
                    text = f"{name} is for the services after this line only"
                    notes.append(Note(section.file, defaults[name].line, text))
    later = {n: v for n, v in defaults.items() if n not in (*AT_ONCE, "v6only")}
    made = []
    for section, at_once in services:
        inherited = {
            name: Value(value.words, value.file, value.line, is_inherited=True)
            for name, value in (later | at_once).items()
        }
        made.append(_Service(section, inherited, notes, is_refused=is_refused))
    entries = [entry for service in made if (entry := service.entry()) is not None]
    _tell_of_defaults(defaults, {service.identity.lower() for service in made}, notes)
    return entries, list(dict.fromkeys(notes))


def _tell_of_defaults(defaults: Values, identities: set[str], notes: list[Note]) -> None:
    """Tell of what has no effect among the defaults."""
    if value := defaults.get("v6only"):
        notes.append(Note(value.file, value.line, "left out: v6only has no effect among defaults"))
    for name in ("enabled", "disabled"):
        if value := defaults.get(name):
            gone = [one for one in value.words if one.lower() not in identities]
            text = f"{name}: there is no service with the id"
            notes += [Note(value.file, value.line, f"{text} {one}") for one in gone]


class _Service:
    """Turns one section into an entry. Attributes that were looked at are taken off the list; what
    is left in the end is told.
    """

    def __init__(
        self, section: Section, inherited: Values, notes: list[Note], *, is_refused: bool
    ) -> None:
        self.section = section
        self.notes = notes
        gathered = Gathering(section, inherited, notes)
        self.values = gathered.values
        self.given = dict(self.values)
        self.is_refused = is_refused or bool(gathered.rejected)
        self.enabled = self._take("enabled") if "enabled" in self.values else None
        self.disabled = self._take("disabled")
        self.identity = self._one("id") or section.name
        self.types = {word.upper() for word in self._take("type")}
        self.flags = {word.upper() for word in self._take("flags")}
        self.is_internal = bool(self.types & {"INTERNAL"} or self.flags & {"SENSOR"})
        self.is_redirect = "redirect" in self.given and not self.is_internal
        self.is_program = not (self.is_internal or self.is_redirect)
        self.made = Entry(service_name(self.identity), section.file, section.line)

    def entry(self) -> Entry | None:
        if self._cannot_be():
            return None
        self._plugin()
        transport = self._transport()
        if transport is None:
            return None
        if self.types & {"TCPMUX", "TCPMUXPLUS"}:
            self._note("its limits hold for who comes by tcpmux, too; xinetd asks for none", "type")
            greeting = "" if "TCPMUXPLUS" in self.types else OWN_GREETING
            self.made.keys["listen"] = f"tcpmux://{self.section.name}{greeting}"
        else:
            self.made.keys["listen"] = self._listen(transport)
        self._identity()
        if self.is_program:
            self._program()
        elif self.is_redirect:
            self._redirect(transport)
        self._access()
        self._limits()
        self._switches(transport)
        self._rest()
        return self.made

    def _note(self, text: str, attribute: str = "") -> None:
        """Tell something, at the line of an attribute if there is one."""
        value = self.given.get(attribute)
        if value is None:
            note = Note(self.section.file, self.section.line, f"{self.identity}: {text}")
        elif value.is_inherited:
            note = Note(value.file, value.line, f"defaults: {text}")
        else:
            note = Note(value.file, value.line, f"{self.identity}: {text}")
        self.notes.append(note)

    def _off(self, why: str, attribute: str = "") -> None:
        """Do not enable what xinetd would not serve."""
        self.is_refused = True
        value = self.given.get(attribute)
        if value is not None and value.is_inherited:
            attribute = ""  # it is told of every service
        self._note(f"not enabled, as xinetd does not serve it: {why}", attribute)

    def _take(self, name: str) -> list[str]:
        value = self.values.pop(name, None)
        return value.words if value else []

    def _one(self, name: str) -> str:
        return " ".join(self._take(name))

    def _says_yes(self, name: str) -> bool:
        return self._one(name).lower() == "yes"

    def _cannot_be(self) -> bool:
        name, kind = self.section.name, " ".join(self._words("socket_type")).lower()
        for what, is_so in (
            ("RPC", "RPC" in self.types),
            (kind, kind in ("raw", "seqpacket")),
        ):
            if is_so:
                self._note(f"left out: superd has no {what} services", "type")
                return True
        if "SENSOR" not in self.flags and self.is_internal and name.lower() not in INTERNAL:
            text = f"left out: there is no internal service {name} (servers, services, ...)"
            self._note(text, "type")
            return True
        return False

    def _words(self, name: str) -> list[str]:
        value = self.given.get(name)
        return value.words if value else []

    def _plugin(self) -> None:
        plugin = "exec" if self.is_program else "forward"
        if self.is_internal:
            plugin = self.section.name.lower()
        self.made.keys["plugin"] = "discard" if "SENSOR" in self.flags else plugin

    def _transport(self) -> str | None:
        kind, protocol = self._one("socket_type").lower(), self._one("protocol").lower()
        if not kind and not protocol:
            self._off("it has neither socket_type nor protocol")
        kind = kind or {"udp": "dgram"}.get(protocol, "stream")
        protocol = protocol or {"dgram": "udp"}.get(kind, "tcp")
        transport = TRANSPORTS.get((kind, protocol))
        if transport is None:
            self._note(f"left out: protocol {protocol} does not go with {kind}", "protocol")
        return transport

    def _listen(self, transport: str) -> str:
        given, name = self._one("port"), self.section.name
        if "UNLISTED" not in self.types:
            listed = _listed(name, transport)
            if listed is None:
                self._off(f"{name} is not in /etc/services; type = UNLISTED is needed", "port")
            elif given and int(given) != listed:
                why = f"the port of {name} is {listed}, unless type is UNLISTED"
                self._off(why, "port")
        elif not given:
            self._off("type is UNLISTED and there is no port", "type")
        bind = self._one("bind")
        if bind and not bind.replace(".", "").isdecimal() and ":" not in bind:
            self._note("bind: superd listens on every address of a name", "bind")
        host = f"[{bind}]" if ":" in bind else bind
        only_v6 = self._one("v6only").lower()
        if only_v6 == "no":
            self._note("v6only = no: xinetd takes it for yes, hence IPv6 only", "v6only")
        if not host:
            host = "0.0.0.0" if self.flags & {"IPV4", "IPV6"} == {"IPV4"} else "[::]"  # noqa: S104
        if host == "[::]" and not only_v6:
            host = "*"  # its socket takes IPv4 too
        return f"{transport}://{host}:{given or name}"

    def _identity(self) -> None:
        keys = self.made.keys
        user, group = self._one("user"), self._one("group")
        if not self.is_program and user in ("root", "0"):
            user = group = ""  # who answers or forwards needs nothing of root's
        if user:
            keys["user"] = _number_or_name(user)
        if group:
            keys["group"] = _number_or_name(group)
        if self._says_yes("groups"):
            self._note("groups = yes: name the user's groups in groups = [...]", "groups")
        umask = self._one("umask")
        if umask or self.is_program:
            keys["umask"] = f"{int(umask or UMASK, 8):03o}"
        if nice := self._one("nice"):
            keys["nice"] = max(-20, min(19, int(nice)))
        self._rlimits()

    def _rlimits(self) -> None:
        limits: dict[str, str | int] = {}
        for attribute, key in RLIMITS.items():
            value = self._one(attribute)
            if value and value.upper() != "UNLIMITED":
                limits[key] = as_limit(key, value)
                self._note(f"{attribute} is a limit of superd's worker, too", attribute)
                if limits[key] == FEWEST_FILES and value != str(FEWEST_FILES):
                    self._note(f"{attribute}: superd takes {FEWEST_FILES} at least", attribute)
        if limits:
            self.made.keys["rlimits"] = limits

    def _program(self) -> None:
        server, arguments = self._one("server"), self._take("server_args")
        options: dict[str, Any] = {}
        if "NAMEINARGS" in self.flags:
            if arguments:
                options["argv0"], *arguments = arguments
            else:
                self._off("flag NAMEINARGS needs server_args", "flags")
        options["command"] = [server, *arguments] if arguments else server
        variables = dict(pair.partition("=")[::2] for pair in self._take("env"))
        if variables:
            options["env"] = variables
        if "passenv" in self.values:
            options["pass-env"] = self._take("passenv")
        else:
            self._note("xinetd passes on all of its environment; here it takes pass-env")
        self.made.keys["options"] = options
        for attribute in ("server", "user"):
            if not self._words(attribute):
                self._off(f"it has no {attribute}")

    def _redirect(self, transport: str) -> None:
        place, remark = target(*self._take("redirect"))
        self.made.keys["options"] = {"to": f"{transport}://{place}"}
        if remark:
            self._note(f"redirect: {remark}", "redirect")
        if transport != "tcp":
            self._off("it redirects tcp only", "redirect")
        if " ".join(self._words("wait")).lower() == "yes":
            self._off("a service with redirect must not wait", "wait")
        if not self._words("user"):
            self._off("it has no user")

    def _access(self) -> None:
        keys = self.made.keys
        allow = self._take("only_from") if "only_from" in self.values else None
        deny = self._take("no_access")
        for pattern in overruled(allow or [], deny):
            assert allow is not None  # it has this pattern
            allow = [one for one in allow if one != pattern]
            text = f"{pattern} of only_from is left out: to xinetd no_access goes before it"
            self._note(text, "only_from")
        if allow is not None:
            keys["allow"] = allow
        if deny:
            keys["deny"] = deny
        if allow and deny and any(is_name(pattern) for pattern in allow + deny):
            self._note("only_from and no_access: xinetd refuses who is in both; superd goes by the"
                       " more specific of the two", "no_access")  # fmt: skip
        if windows := self._take("access_times"):
            keys["access-times"] = [with_its_last_minute(window) for window in windows]

    def _limits(self) -> None:
        keys = self.made.keys
        for attribute, key in (("instances", "max-connections"), ("per_source", "max-per-source")):
            value = self._one(attribute).upper()
            if value and not value.strip("0"):
                self._off(f"{attribute} = 0 lets nobody in", attribute)
            elif value not in ("", "UNLIMITED"):
                keys[key] = int(value)
        if "max-connections" in keys:
            keys["on-limit"] = "reject"
        if "max-per-source" in keys:
            text = "per_source: an IPv6 source is a /64 here; see source-netblock"
            self._note(text, "per_source")
        rate, *seconds = self._take("cps") or ("0",)
        if int(rate):
            keys["rate"] = f"{int(rate)}/s"
            text = (
                f"cps: superd never closes the port, hence no {' '.join(seconds)} s; who comes too"
            )
            self._note(f"{text} fast is refused or, without instances, waits", "cps")
        if load := self._one("max_load"):
            keys["max-load"] = float(load)

    def _switches(self, transport: str) -> None:
        keys = self.made.keys
        waits = self._one("wait").lower()
        if not waits:
            self._off("it has no wait")
        elif transport == "udp" and waits == "no" and self.is_program:
            self._note(f"wait = no: {NOWAIT}", "wait")
        if self.is_internal and transport == "udp" and keys["plugin"] != "discard":
            self._note(NO_REFLECTION)
        elif self.is_program and waits == "yes":
            keys["wait"] = True
            if transport == "tcp" and keys.keys() & {"allow", "deny"}:
                self._note("wait: nobody is judged whom the program itself accepts", "wait")
        is_counted = "TRAFFIC" in {word.upper() for word in self._words("log_on_success")}
        if is_counted and "redirect" not in self.given:
            self._off("log_on_success has TRAFFIC, which is for redirect only", "log_on_success")
        for flag in ("NODELAY", "KEEPALIVE"):
            if flag in self.flags:
                keys[flag.lower()] = True
        for flag in sorted(self.flags & ABOUT_FLAGS.keys()):
            self._note(f"flag {flag}: {ABOUT_FLAGS[flag]}", "flags")
        if not self.is_program and "NAMEINARGS" in self.flags:
            self._off("flag NAMEINARGS is for programs only", "flags")
        is_listed = _in(self.enabled, self.identity)
        is_off = self._says_yes("disable") or is_listed is False
        if is_off or _in(self.disabled, self.identity) or self.is_refused:
            self.made.keys["enabled"] = False

    def _rest(self) -> None:
        """Tell of everything that is left."""
        for name in self.values:
            self._note(f"left out: {name}: {TOLD.get(name, 'it has no equivalent')}", name)


def _listed(name: str, transport: str) -> int | None:
    """Return the port that /etc/services has for a name."""
    try:
        return socket.getservbyname(name, transport)
    except (OSError, ValueError):
        return None


def _number_or_name(text: str) -> int | str:
    return int(text) if re.fullmatch("[0-9]{1,10}", text) else text


def _in(identities: list[str] | None, one: str) -> bool | None:
    if identities is None:
        return None
    return one.lower() in {identity.lower() for identity in identities}
