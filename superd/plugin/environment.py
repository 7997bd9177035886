"""The environment that superd was started with.

The worker saves it here before it clears its own, for plugins with an option that names variables
to pass on. Never raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_inherited: dict[str, str] = {}


def remember(environment: Mapping[str, str]) -> None:
    """Save the variables before the worker clears them."""
    _inherited.update(environment)


def inherited_environment(names: Iterable[str]) -> dict[str, str]:
    """Return those of the named variables that superd was started with."""
    return {name: _inherited[name] for name in names if name in _inherited}
