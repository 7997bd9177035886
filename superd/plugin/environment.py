"""What superd was started with in its environment, of which a plugin sees little by itself.

Filled in before the worker cleans its own; for plugins that are told which variables to pass on.
Never raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_inherited: dict[str, str] = {}


def remember(environment: Mapping[str, str]) -> None:
    """Keep what is about to be forgotten."""
    _inherited.update(environment)


def inherited_environment(names: Iterable[str]) -> dict[str, str]:
    """Return the variables of these names that superd was started with."""
    return {name: _inherited[name] for name in names if name in _inherited}
