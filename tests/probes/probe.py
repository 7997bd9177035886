"""A probe: an ordinary operation of Python that runs in a worker.

A module of probes imports at its top, as a plugin does. So a probe tests only what Python itself
imports or opens late.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

Probe = Callable[[], Awaitable[object] | object]
PROBES: dict[str, Probe] = {}


def probe(function: Probe) -> Probe:
    PROBES[getattr(function, "__name__", "")] = function
    return function


def expect(condition: object, what: str) -> None:
    """Fail if a condition is false where Python itself raises nothing."""
    if not condition:
        raise LookupError(f"silently {what}")
