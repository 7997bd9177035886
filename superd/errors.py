"""The errors that superd reports to the operator, and the exit code of each.

Used by every process. Imports no other module of superd, so that any of them can raise these.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable
from dataclasses import dataclass

MAX_SHOWN_CHARACTERS = 60  # of a value in a message; the rest is cut


class ExitCode(enum.IntEnum):
    """Exit codes of the `superd` command; those of sysexits.h where one fits."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3  # of `superd status`; the Linux Standard Base asks for it
    ADDRESS_IN_USE = 69  # EX_UNAVAILABLE
    TEMPORARY = 75  # EX_TEMPFAIL
    NOT_PERMITTED = 77  # EX_NOPERM
    CONFIGURATION = 78  # EX_CONFIG


class SuperdError(Exception):
    """A failure whose text is for the operator; it is printed without a traceback."""

    exit_code = ExitCode.FAILED


class UsageError(SuperdError):
    """The command line asks for something impossible."""

    exit_code = ExitCode.USAGE


class AddressInUse(SuperdError):
    """Another process listens on an address that the configuration names."""

    exit_code = ExitCode.ADDRESS_IN_USE


class NotPermitted(SuperdError):
    """superd lacks a privilege that the configuration requires."""

    exit_code = ExitCode.NOT_PERMITTED


class TemporaryFailure(ValueError):
    """A value cannot be judged now, as the system cannot answer; it may be right."""


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake in a configuration: its place, what was expected and what was found.

    `line` and `column` count from 1. They are 0 if the problem concerns a whole file.
    """

    file: str
    line: int
    column: int
    path: str
    message: str
    is_temporary: bool = False  # it may pass by itself

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return printable(": ".join(filter(None, (place, self.path, self.message))))


class ConfigurationError(SuperdError):
    """All mistakes that were found in a configuration."""

    exit_code = ExitCode.CONFIGURATION

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        if self.problems and all(problem.is_temporary for problem in self.problems):
            self.exit_code = ExitCode.TEMPORARY
        super().__init__("\n".join(str(problem) for problem in self.problems))


def printable(text: str) -> str:
    """Return text on one line with control characters escaped, so that it cannot forge a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """Return a value for a message: in TOML's notation, shortened, on one line."""
    if isinstance(value, str):
        text = value[:MAX_SHOWN_CHARACTERS].replace("\\", r"\\").replace('"', r"\"")
        cut = "..." if len(value) > MAX_SHOWN_CHARACTERS else ""
        return f'"{printable(text)}{cut}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table" if value else "an empty table"
    if isinstance(value, (list, tuple)):
        return "an array" if value else "an empty array"
    if isinstance(value, int) and abs(value) >= 10**MAX_SHOWN_CHARACTERS:
        return "a huge number"
    return str(value)


def reason(error: BaseException) -> str:
    """Return the operating system's text for an error, or the class and text of any other. An
    exception that has words of its own keeps them: those of name services have numbers that are no
    errno (getaddrinfo(3)), and a library may know more than the system.
    """
    if isinstance(error, OSError) and isinstance(error.errno, int):
        own, words = str(error.strerror or ""), os.strerror(error.errno)
        if own and (error.errno <= 0 or own.lower() != words.lower()):
            words = f"{type(error).__name__}: {own}" if error.errno <= 0 else own
        return f"{words}: {error.filename}" if error.filename is not None else words
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  the class may be a plugin's, and its __str__ may fail
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
