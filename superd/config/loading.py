"""Reads a configuration: turns files into frozen settings, and reports all problems at once.

Runs in the command line and the master, before anything is bound. Looks up users, groups and jails
in the system, and never loads a plugin. Raises ConfigurationError.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError

from superd.config.model import (
    SERVICE_NAME,
    TCPMUX,
    Daemon,
    Defaults,
    Service,
    Settings,
)
from superd.config.permissions import jail_problem
from superd.config.positions import Path as KeyPath
from superd.config.problems import Document, Locate, problems_of
from superd.config.reading import document_of, included_files, read_document
from superd.config.section import Section
from superd.config.values import did_you_mean, nearest
from superd.errors import ConfigurationError, Problem, shown
from superd.net.addresses import (
    ANY_IPV4,
    ANY_IPV6,
    MAX_ADDRESSES,
    Address,
    Transport,
    parse_addresses,
)

SECTIONS = ("daemon", "defaults", "service")
NO_OVERRIDES: Mapping[str, bool] = MappingProxyType({})
ENTRY_KEYS = frozenset(str(field.alias) for field in Service.model_fields.values())
TIMEOUTS = ("first-byte-timeout", "idle-timeout", "session-timeout")

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Configuration:
    """The settings of a file, the problems in it, and the position of each key.

    `partial` is without the values that have problems. It serves to find further problems, and
    commands use it to find a daemon that was started before the errors were made. `unread` has by
    service the keys of its entry that it lacks: those with a wrong value, unknown ones, and those
    that unknown ones are probably meant as.
    """

    partial: Settings
    problems: tuple[Problem, ...]
    locate: Callable[[str, KeyPath], tuple[Document, KeyPath]]
    main: Document
    unread: Mapping[str, frozenset[str]]

    @property
    def settings(self) -> Settings:
        """The settings; raises ConfigurationError with all problems, if there are any."""
        if self.problems:
            raise ConfigurationError(self.problems)
        return self.partial

    def problem(
        self, service: str, path: KeyPath, message: str, *, at_key: bool = False
    ) -> Problem:
        """Return a problem with a key of a service."""
        document, place = self.locate(service, path)
        return document.problem(place, message, at_key=at_key)

    def daemon_problem(self, key: str, number: int, message: str) -> Problem:
        """Return a problem with one of the values of a key of [daemon]."""
        is_list = isinstance(self.main.data["daemon"][key], list)
        path = ("daemon", key, number) if is_list else ("daemon", key)
        return self.main.problem(path, message)

    def address_problem(self, service: str, address: Address, message: str) -> Problem:
        """Return a problem with an address that a service listens on."""
        document, path = self.locate(service, ("listen",))
        texts: Any = document.data
        for part in path:
            texts = texts[part]
        if isinstance(texts, list):  # the last one repeats those before
            meant = [n for n, text in enumerate(texts) if address.listed in _expanded(str(text))]
            path = (*path, *meant[-1:])
        return document.problem(path, message)


def load(file: Path, enabled: Mapping[str, bool] = NO_OVERRIDES) -> Configuration:
    """Read `file` and what it includes, and check everything that needs no plugin.

    `enabled` overrides the key `enabled` of services, by name.

    Raises ConfigurationError only if `file` cannot be read or is not TOML.
    """
    return check(read_document(file), file, enabled)


def check(
    document: Document, file: Path, enabled: Mapping[str, bool] = NO_OVERRIDES
) -> Configuration:
    """Return the configuration whose main file is `document`."""
    return _Loader(document, file, enabled).configuration()


def load_again(
    file: Path, texts: Mapping[str, str], enabled: Mapping[str, bool] = NO_OVERRIDES
) -> Configuration:
    """Return the configuration that was read from `texts` (see Settings) without reading files
    again; raises ConfigurationError if a text is not TOML.
    """
    main, *included = [document_of(name, text) for name, text in texts.items()]
    return _Loader(main, file, enabled, included).configuration()


class _Loader:
    """Turns one configuration into settings and collects its problems."""

    def __init__(
        self,
        main: Document,
        file: Path,
        enabled: Mapping[str, bool],
        included: Sequence[Document] | None = None,
    ) -> None:
        self.main = main
        self.included = included  # None: read the files that the main file includes
        self.file = file.absolute()
        self.enabled = enabled
        self.context = {"directory": self.file.parent}
        self.problems: list[Problem] = []
        self.homes: dict[str, Document] = {}
        self.unread: dict[str, frozenset[str]] = {}
        self.texts: dict[str, str] = {}

    def configuration(self) -> Configuration:
        valid, _ = self._valid(Daemon, self._table("daemon"), self._in_main("daemon"))
        daemon = valid or Daemon()
        for document in self._documents(daemon):
            self.texts[document.name] = document.text
            self._names(document)
        if defaults := self._table("defaults"):
            self._valid(Defaults, defaults, self._in_main("defaults"))
        services = {
            name: entry for name in self.homes if (entry := self._service(name)) is not None
        }
        services = _without_claimed_ports(services)
        settings = Settings.model_construct(
            file=self.file, texts=self.texts, daemon=daemon, services=services
        )
        found = Configuration(settings, (), self.locate, self.main, self.unread)
        if not self.problems:
            self.problems += self._nothing_to_serve(found)
        self.problems += self._repeated_addresses(found)
        self.problems += self._unreachable_addresses(found)
        problems = tuple(dict.fromkeys(self.problems))
        return replace(found, problems=problems)

    def locate(self, name: str, path: KeyPath) -> tuple[Document, KeyPath]:
        """Return the position of a service's key: in its own entry or under [defaults]."""
        document = self.homes[name]
        own = document.data["service"][name]
        if path and path[0] not in own and path[0] in self._table("defaults"):
            return self.main, ("defaults", *path)
        return document, ("service", name, *path)

    def _table(self, section: str) -> dict[str, Any]:
        table = self.main.data.get(section, {})
        return table if isinstance(table, dict) else {}

    def _in_main(self, section: str) -> Locate:
        return lambda path: (self.main, (section, *path))

    def _valid(
        self, model: type[S], data: dict[str, Any], locate: Locate
    ) -> tuple[S | None, set[str]]:
        """Return the model of `data` without invalid values, None if a required one is missing, and
        the keys that have problems.
        """
        try:
            return model.model_validate(data, context=self.context), set()
        except ValidationError as error:
            self.problems += problems_of(error, model, data, locate)
            wrong = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
        try:
            rest = {key: value for key, value in data.items() if key not in wrong}
            return model.model_validate(rest, context=self.context), wrong
        except ValidationError:
            return None, wrong

    def _documents(self, daemon: Daemon) -> Iterator[Document]:
        yield self.main
        if self.included is not None:
            yield from self.included
            return
        seen = {os.path.realpath(self.file)}
        for number, pattern in enumerate(daemon.include):
            try:
                files = included_files(self.file.parent, pattern)
            except ValueError as error:
                is_list = isinstance(self._table("daemon")["include"], list)
                path: KeyPath = ("daemon", "include", *([number] if is_list else []))
                found = "" if pattern in str(error) else f", found {shown(pattern)}"
                self.problems.append(self.main.problem(path, f"{error}{found}"))
                continue
            for file in files:
                if (real := os.path.realpath(file)) not in seen:
                    seen.add(real)
                    try:
                        yield read_document(file)
                    except ConfigurationError as error:
                        self.problems += error.problems

    def _names(self, document: Document) -> None:
        """Collect the services of a document, and problems with its other keys."""
        sections = SECTIONS if document is self.main else SECTIONS[2:]
        for key, value in document.data.items():
            if key not in sections:
                hint = did_you_mean(key, list(sections))
                if key in SECTIONS:
                    hint = f": only the main file, {self.main.name}, has a [{key}]"
                self.problems.append(document.problem((key,), f"unknown key{hint}", at_key=True))
            elif not isinstance(value, dict):
                message = f"expected a table, found {shown(value)}"
                self.problems.append(document.problem((key,), message))
        services = document.data.get("service", {})
        services = services if isinstance(services, dict) else {}
        keys = {key for key, value in services.items() if not isinstance(value, dict)} & ENTRY_KEYS
        if keys:
            message = "expected a table with the name of the service, such as [service.echo]"
            self.problems.append(document.problem(("service",), message, at_key=True))
        for name, entry in services.items():
            if name in keys:
                continue
            path = ("service", name)
            if not SERVICE_NAME.fullmatch(name):
                message = (
                    "a service's name has letters, digits and . _ + - only, 64 at most,"
                    " and starts with a letter or digit"
                )
            elif not isinstance(entry, dict):
                message = f"expected a table, found {shown(entry)}"
            elif name in self.homes:
                first = self.homes[name].problem(path, "", at_key=True)
                message = f"the service is defined already, at {first.file}:{first.line}"
            else:
                self.homes[name] = document
                continue
            self.problems.append(document.problem(path, message, at_key=True))

    def _service(self, name: str) -> Service | None:
        """Return an entry; if it has errors, only the part that its plugin checks."""
        data = self._table("defaults") | self.homes[name].data["service"][name]
        service, wrong = self._valid(Service, data, lambda path: self.locate(name, path))
        if wrong:
            meant = {nearest(key, ENTRY_KEYS) for key in wrong - ENTRY_KEYS}
            self.unread[name] = frozenset(wrong | meant - {""})
        if service is None:
            plugin, options = data.get("plugin"), data.get("options", {})
            if not (isinstance(plugin, str) and plugin and isinstance(options, dict)):
                return None
            return Service.model_construct(plugin=plugin, listen=(), options=options)
        if service.chroot and os.geteuid() == 0 and (why := jail_problem(service.chroot)):
            document, path = self.locate(name, ("chroot",))
            self.problems.append(document.problem(path, why))
        self._check_unused_timeouts(name, service)
        is_enabled = self.enabled.get(name, service.enabled)
        same = is_enabled == service.enabled
        return service if same else service.model_copy(update={"enabled": is_enabled})

    def _check_unused_timeouts(self, name: str, service: Service) -> None:
        """Report time-outs of an entry whose plugin accepts the connections itself."""
        document, own = self.homes[name], self.homes[name].data["service"][name]
        for key in TIMEOUTS if service.wait else ():
            if key in own and getattr(service, key.replace("-", "_")):
                message = "has no effect with wait = true; exec has options.max-run-time instead"
                path = ("service", name, key)
                self.problems.append(document.problem(path, message, at_key=True))

    def _nothing_to_serve(self, found: Configuration) -> Iterator[Problem]:
        if not self.homes:
            message = "there is no service; add one, such as [service.echo]"
            yield self.main.problem((), message)
        elif not found.partial.enabled:
            yield found.problem(next(iter(self.homes)), ("enabled",), "no service is enabled")

    def _repeated_addresses(self, found: Configuration) -> Iterator[Problem]:
        """Report addresses that two services listen on; port 0 never conflicts."""
        seen: dict[object, str] = {}
        reported = set()
        for name, service in found.partial.enabled.items():
            for address in service.listen:
                for one in address.expanded():
                    end = os.path.normpath(one.path) if one.is_file else (one, service.device)
                    other = seen.get(end)
                    if other is not None and (name, other) not in reported:
                        reported.add((name, other))  # once for two ranges
                        message = f"{one} is listened on by service.{other} already"
                        yield found.address_problem(name, one, message)
                    if one.path or one.port:
                        seen[end] = name
            if len(seen) > MAX_ADDRESSES:
                message = f"with this one there are more than {MAX_ADDRESSES} addresses"
                yield found.problem(name, ("listen",), message)
                return

    def _unreachable_addresses(self, found: Configuration) -> Iterator[Problem]:
        """Report tcpmux addresses that cannot receive connections."""
        services = found.partial.enabled
        # one that may be in what has problems is not missing
        has_tcpmux = bool(self.problems) or any(
            nearest(entry.plugin, [TCPMUX]) for entry in services.values()
        )
        for name, service in services.items():
            address = next((a for a in service.listen if a.transport is Transport.TCPMUX), None)
            if address is not None and not has_tcpmux:
                message = f'{address} needs a service with plugin = "{TCPMUX}"; add one'
                yield found.address_problem(name, address, message)
            elif address is not None and service.wait:
                message = f"{address} has no listening socket for the plugin; remove wait = true"
                yield found.address_problem(name, address, message)


def _without_claimed_ports(services: dict[str, Service]) -> dict[str, Service]:
    """Remove from ranges of ports each address that another enabled service names explicitly, also
    with the wildcard: all clients of that port must reach that service.
    """
    claimed = {
        (one, entry.device)
        for entry in services.values()
        if entry.enabled
        for address in entry.listen
        if not address.is_from_range
        for one in address.expanded()
    }
    ports = {one.port for one, _ in claimed}

    def is_claimed(one: Address, device: str) -> bool:
        any_host = ANY_IPV6 if one.family == socket.AF_INET6 else ANY_IPV4
        return (one, device) in claimed or (replace(one, host=any_host), device) in claimed

    def left(address: Address, device: str) -> tuple[Address, ...]:
        if not address.is_from_range or address.port not in ports:
            return (address,)
        expanded = address.expanded()
        free = tuple(one for one in expanded if not is_claimed(one, device))
        return (address,) if free == expanded else free

    found = {}
    for name, entry in services.items():
        listen = tuple(one for address in entry.listen for one in left(address, entry.device))
        changed = listen and listen != entry.listen
        found[name] = entry.model_copy(update={"listen": listen}) if changed else entry
    return found


@lru_cache(16)  # each address of a range is looked for
def _expanded(text: str) -> frozenset[Address]:
    try:
        parsed = parse_addresses(text)
    except ValueError:
        return frozenset()
    return frozenset(one for address in parsed for one in (address, *address.expanded()))
