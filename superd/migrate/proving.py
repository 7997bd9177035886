"""Finds out which entries `superd check` would refuse, and makes comments of them.

Runs in the command line. Looks at the system as `check` does: a user, a host or a port's name that
is not known here is one that superd cannot serve here. What plugins find wrong comes from the
caller, as nothing here imports one. Never raises.
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


def prove(entries: list[Entry], examine: Examine = lambda found: found.problems) -> list[Note]:
    """Make a comment of each entry that has a mistake, and return a note on each."""
    notes: list[Note] = []
    while found := _mistakes(entries, examine):
        notes += [entry.left_out(why) for entry, why in found]
    return notes


def _mistakes(entries: list[Entry], examine: Examine) -> list[tuple[Entry, str]]:
    """Return the entries that are refused, with the first reason for each."""
    text = as_toml(entries)
    lines = [entry.text(entry.name).count("\n") + 1 for entry in entries]
    starts = [1 + sum(lines[:number]) for number in range(len(lines))]
    document = document_of("", text)
    reasons: dict[int, str] = {}
    for problem in examine(check(document, Path("migrated.toml"))):
        if problem.line and not _is_of_all(problem):
            reasons.setdefault(bisect_right(starts, problem.line) - 1, _why(problem))
    return [(entries[number], why) for number, why in reasons.items()]


def _is_of_all(problem: Problem) -> bool:
    """Tell whether the problem is that no service is there, or enabled."""
    return not problem.path or problem.path.endswith(".enabled")


def _why(problem: Problem) -> str:
    key = problem.path.rpartition(".")[2]
    return f"{key}: {problem.message}"
