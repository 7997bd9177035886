"""Reads a configuration: files to frozen settings, or to every problem in them at once.

Runs in the command line and the master, before anything is bound. Never follows a file that
others can write where superd is root, never reads a device or a pipe. Raises ConfigurationError.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli
from pydantic import ValidationError

from superd.config.model import SERVICE_NAME, Daemon, Service, Settings
from superd.config.positions import Path as KeyPath
from superd.config.positions import TooDeep, find_positions
from superd.config.problems import Document, problems_of, shown
from superd.config.values import did_you_mean
from superd.errors import ConfigurationError, Problem, reason
from superd.net.addresses import Address

LARGEST_FILE = 1 << 20
SECTIONS = ("daemon", "defaults", "service")


@dataclass(frozen=True)
class Configuration:
    """Checked settings, and where each of their keys stands, for problems found later."""

    settings: Settings
    locate: Callable[[str, KeyPath], tuple[Document, KeyPath]]

    def problem(self, service: str, path: KeyPath, message: str) -> Problem:
        """Return a problem with a key of a service."""
        document, place = self.locate(service, path)
        return document.problem(place, message)


def load(file: Path) -> Configuration:
    """Read `file` and what it includes, and check everything that needs no plugin."""
    return check(read_document(file), file)


def check(document: Document, file: Path) -> Configuration:
    """Turn the main document into settings, or raise every problem found."""
    loader = Loader(document, file)
    return Configuration(loader.settings(), loader.locate)


def read_document(file: Path) -> Document:
    """Read one file of TOML and find where its keys stand."""
    name = str(file)
    text = _read_text(file)
    try:
        places = find_positions(text)
        return Document(name, places, tomli.loads(text))
    except TooDeep as error:
        position = error.position
        problem = Problem(name, position.line, position.column, "", str(error))
    except tomli.TOMLDecodeError as error:
        problem = Problem(name, error.lineno, error.colno, "", f"not TOML: {error.msg}")
    except (ValueError, RecursionError, OverflowError) as error:
        problem = Problem(name, 0, 0, "", f"not TOML: {error}")
    raise ConfigurationError([problem])


def _read_text(file: Path) -> str:
    """Return the file's text. Opened without blocking: it may turn out to be a pipe."""
    name = str(file)
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        remedy = ""
        if isinstance(error, OSError) and error.errno == errno.ENOENT:
            remedy = "; name another with -c FILE or $SUPERD_CONFIG"
        words = reason(error).removesuffix(f": {name}")
        raise ConfigurationError([Problem(name, 0, 0, "", f"{words}{remedy}")]) from None
    with open(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            message = "is not a regular file"
        elif status.st_size > LARGEST_FILE:
            message = f"is larger than {LARGEST_FILE >> 20} MiB"
        elif os.geteuid() == 0 and status.st_uid != 0:
            message = "belongs to another user, and superd runs as root: chown it to root"
        elif os.geteuid() == 0 and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            message = "can be written by others, and superd runs as root: chmod go-w"
        else:
            raw = opened.read(LARGEST_FILE + 1)
            try:
                return raw.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                line = raw.count(b"\n", 0, error.start) + 1
                column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
                problem = Problem(name, line, column, "", "not TOML: this byte is not UTF-8")
                raise ConfigurationError([problem]) from None
    raise ConfigurationError([Problem(name, 0, 0, "", message)])


class Loader:
    """Gathers the problems of one configuration while it is turned into settings."""

    def __init__(self, main: Document, file: Path) -> None:
        self.main = main
        self.file = file
        self.directory = file.absolute().parent
        self.problems: list[Problem] = []
        self.homes: dict[str, Document] = {}

    def settings(self) -> Settings:
        """Return the settings, or raise every problem found."""
        daemon = self._daemon()
        for document in self._documents(daemon):
            self._names(document)
        services = {
            name: entry for name in self.homes if (entry := self._service(name)) is not None
        }
        if not self.homes and not self.problems:
            message = "there is no service; add one, such as [service.echo]"
            self.problems.append(self.main.problem((), message))
        self._distinct(services)
        if self.problems:
            raise ConfigurationError(self.problems)
        return Settings(file=self.file.absolute(), daemon=daemon, services=services)

    def locate(self, name: str, path: KeyPath) -> tuple[Document, KeyPath]:
        """Tell where a key of service `name` stands: in its own entry or under [defaults]."""
        document = self.homes[name]
        own = document.data["service"][name]
        if path and path[0] not in own and path[0] in self._defaults():
            return self.main, ("defaults", *path)
        return document, ("service", name, *path)

    def _defaults(self) -> dict[str, Any]:
        defaults = self.main.data.get("defaults", {})
        return defaults if isinstance(defaults, dict) else {}

    def _daemon(self) -> Daemon:
        data = self.main.data.get("daemon", {})
        try:
            return Daemon.model_validate(data, context={"directory": self.directory})
        except ValidationError as error:
            self.problems += problems_of(error, Daemon, lambda path: (self.main, ("daemon", *path)))
            return Daemon()

    def _documents(self, daemon: Daemon) -> Iterator[Document]:
        yield self.main
        for pattern in daemon.include:
            try:
                files = sorted(self.directory.glob(pattern))
            except (ValueError, NotImplementedError):
                message = f"expected a pattern relative to this file, found {shown(pattern)}"
                self.problems.append(self.main.problem(("daemon", "include"), message))
                continue
            for file in files:
                try:
                    yield read_document(file)
                except ConfigurationError as error:
                    self.problems += error.problems

    def _names(self, document: Document) -> None:
        """Note which services the document has, and complain of what is not a service."""
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
        for name, entry in services.items() if isinstance(services, dict) else ():
            path = ("service", name)
            if not SERVICE_NAME.fullmatch(name):
                message = "a service's name has letters, digits and . _ + - only, 64 at most"
            elif not isinstance(entry, dict):
                message = f"expected a table, found {shown(entry)}"
            elif name in self.homes:
                first = self.homes[name].problem(path, "", at_key=True)
                message = f"there is a service of this name at {first.file}:{first.line} already"
            else:
                self.homes[name] = document
                continue
            self.problems.append(document.problem(path, message, at_key=True))

    def _service(self, name: str) -> Service | None:
        own = self.homes[name].data["service"][name]
        try:
            service = Service.model_validate(
                {**self._defaults(), **own}, context={"directory": self.directory}
            )
        except ValidationError as error:
            self.problems += problems_of(error, Service, lambda path: self.locate(name, path))
            return None
        if service.chroot and os.geteuid() == 0 and (mistake := jail_mistake(service.chroot)):
            document, path = self.locate(name, ("chroot",))
            self.problems.append(document.problem(path, mistake))
        return service

    def _distinct(self, services: dict[str, Service]) -> None:
        """Complain of an address that is listened on twice; any free port (0) is never the same."""
        seen: dict[Address, str] = {}
        for name, service in services.items():
            for address in service.listen if service.enabled else ():
                for one in address.expanded():
                    if one in seen:
                        document, path = self.locate(name, ("listen",))
                        message = f"{one} is listened on by service.{seen[one]} already"
                        self.problems.append(document.problem(path, message))
                    if one.transport.is_unix or one.port:
                        seen[one] = name


def jail_mistake(path: str) -> str | None:
    """Return why a directory is no jail: root alone may change it, and what leads to it."""
    for directory in (Path(path), *Path(path).parents):
        try:
            status = os.stat(directory)
        except OSError as error:
            remedy = f"; create it: install -d -m 0755 {path}"
            return f"{reason(error)}{remedy if error.errno == errno.ENOENT else ''}"
        if not stat.S_ISDIR(status.st_mode):
            return f"is not a directory: {directory}"
        shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not (
            status.st_mode & stat.S_ISVTX and directory != Path(path)
        )
        if status.st_uid != 0 or shared:
            return f"a jail is root's alone, and others can change {directory}"
    return None
