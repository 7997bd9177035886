"""What a probe is: an ordinary operation of Python, to be run in a worker.

A probe's module imports at its top what a plugin would import there: only what Python does by
itself, late and unasked, is put to the test.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

Probe = Callable[[], Awaitable[object] | object]
PROBES: dict[str, Probe] = {}


def probe(function: Probe) -> Probe:
    PROBES[getattr(function, "__name__", "")] = function
    return function


def expect(condition: object, what: str) -> None:
    """Fail where Python itself says nothing."""
    if not condition:
        raise LookupError(f"silently {what}")
