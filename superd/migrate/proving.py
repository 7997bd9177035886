"""Turns each entry that `superd check` would reject into a comment.

Runs in the command line. Looks at the system as `check` does, so an entry with a user, a host or a
port name that is unknown on this machine becomes a comment, too. Imports no plugin: the caller
supplies their checks. Never raises.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from pathlib import Path

from superd.config.loading import Configuration, check
from superd.config.reading import document_of
from superd.errors import Problem
from superd.migrate.entries import Entry, Note, as_toml

Examine = Callable[[Configuration], Iterable[Problem]]


def comment_out_rejected(
    entries: list[Entry], examine: Examine = lambda found: found.problems
) -> list[Note]:
    """Turn each rejected entry into a comment; return a note on each."""
    notes: list[Note] = []
    while found := _rejected(entries, examine):
        notes += [entry.left_out(why) for entry, why in found]
    return notes


def _rejected(entries: list[Entry], examine: Examine) -> list[tuple[Entry, str]]:
    """Return the rejected entries, each with the first reason."""
    text = as_toml(entries)
    lines = [entry.text(entry.name).count("\n") + 1 for entry in entries]
    starts = [1 + sum(lines[:number]) for number in range(len(lines))]
    document = document_of("", text)
    reasons: dict[int, str] = {}
    for problem in examine(check(document, Path("migrated.toml"))):
        if problem.line and not _is_of_configuration(problem):
            reasons.setdefault(bisect_right(starts, problem.line) - 1, _why(problem))
    return [(entries[number], why) for number, why in reasons.items()]


def _is_of_configuration(problem: Problem) -> bool:
    """Tell whether the problem is that the configuration has no service, or none enabled."""
    return not problem.path or problem.path.endswith(".enabled")


def _why(problem: Problem) -> str:
    key = problem.path.rpartition(".")[2]
    return f"{key}: {problem.message}"
