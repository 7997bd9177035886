"""Reads one file of a configuration, and finds the files that it includes.

Runs wherever a configuration is read, before anything is bound. Refuses a file that other users can
write when superd runs as root. Never blocks on a pipe or a device. Raises ConfigurationError.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import tomli

from superd.config.permissions import file_problem, path_problem
from superd.config.positions import TooMuch, find_places
from superd.config.problems import Document, dotted
from superd.config.syntax import mistake_in
from superd.errors import ConfigurationError, Problem, reason

LARGEST_FILE = 1 << 20  # bytes

WILDCARD = re.compile(r"[*?\[]")
# backup files of editors and package managers
BACKUP_FILE = re.compile(r"[.#].*|.*(?:~|#|\.bak|\.old|\.orig|\.rej|\.(?:dpkg|rpm|ucf)[-a-z]*)")


def read_document(file: Path) -> Document:
    """Read one file of TOML, with the positions of its keys."""
    return document_of(str(file), read_text(file))


def document_of(name: str, text: str) -> Document:
    """Return the document of a file with this name and text."""
    try:
        places = find_places(text)
    except TooMuch as error:
        raise ConfigurationError([Problem(name, *error.position, "", str(error))]) from None
    try:
        return Document(name, text, places, tomli.loads(text))
    except tomli.TOMLDecodeError as error:
        if places.repeated and error.msg.startswith("Cannot "):
            path, first, again = places.repeated
            message = f"is defined already, at line {first.line}"
            problem = Problem(name, *again, dotted(path), message)
        else:
            position, words = mistake_in(text, error, places)
            problem = Problem(name, *position, "", f"not TOML: {words}")
    except (ValueError, RecursionError) as error:
        problem = Problem(name, 0, 0, "", f"not TOML: {error}")
    raise ConfigurationError([problem])


def read_text(file: Path, *, is_relied_on: bool = True) -> str:
    """Return the text of a file. It is opened without blocking, because it may be a pipe. Root
    relies on no file that other users can change.
    """
    name = str(file)
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            status = os.fstat(descriptor)
            mistake = _problem_with(status)
            if is_relied_on and not mistake:
                mistake = file_problem(file, status)
            raw = b"" if mistake else os.read(descriptor, LARGEST_FILE)
        finally:
            os.close(descriptor)
    except OSError as error:
        mistake = reason(error).removesuffix(f": {name}")
    if mistake:
        raise ConfigurationError([Problem(name, 0, 0, "", mistake)])
    raw = raw.removeprefix(b"\xef\xbb\xbf")  # the byte order mark that some editors write
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        problem = Problem(name, line, column, "", "not TOML: this byte is not UTF-8")
        raise ConfigurationError([problem]) from None


def _problem_with(status: os.stat_result) -> str:
    """Return why a file is not read; "" if it is."""
    if not stat.S_ISREG(status.st_mode):
        return "is a directory" if stat.S_ISDIR(status.st_mode) else "is not a regular file"
    if status.st_size > LARGEST_FILE:
        return f"is larger than {LARGEST_FILE >> 20} MiB"
    return ""


def included_files(directory: Path, pattern: str) -> list[Path]:
    """Return the files that a pattern of `include` matches, in the order of their names.

    A pattern may match no file. A name without wildcards must exist. Raises ValueError for a
    pattern that leads elsewhere, or a directory that cannot be read.
    """
    parts = Path(pattern).parts
    if not parts or pattern.startswith("/") or ".." in parts or "**" in parts or "\0" in pattern:
        raise ValueError('expected files beside or below this one, such as "superd.d/*.toml"')
    if not WILDCARD.search(pattern):
        if not os.path.lexists(directory / pattern):
            raise ValueError(f"there is no file {directory / pattern}")
        return [directory / pattern]
    parent = (directory / pattern).parent
    if os.path.isdir(parent) and not os.access(parent, os.R_OK | os.X_OK):
        raise ValueError(f"cannot read the directory {parent}")  # glob would silently find nothing
    if mistake := path_problem(parent):
        raise ValueError(mistake)
    try:
        found = list(directory.glob(pattern))
    except OSError as error:
        raise ValueError(reason(error)) from None
    return sorted(file for file in found if not BACKUP_FILE.fullmatch(file.name))
