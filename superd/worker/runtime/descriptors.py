"""Detects that plugins have leaked so many descriptors that a worker can accept no connection.

Runs in the worker: counts at the start, and judges after accept(2) has failed with EMFILE. Never
raises.
"""

from __future__ import annotations

import contextlib
import os
import resource

from superd.process.confinement import ASSUMED_MAX_DESCRIPTORS

DESCRIPTORS_PER_CONNECTION = 8  # that a plugin may hold open for each, without leaking


def count_descriptors() -> int:
    """Return how many descriptors are open; a jail has no /proc to list them."""
    count = 0
    for number in range(ASSUMED_MAX_DESCRIPTORS):
        with contextlib.suppress(OSError):
            os.fstat(number)
            count += 1
    return count


def leaked(at_start: int, connections: int) -> int:
    """Return how many descriptors are unaccounted for, if they are most of them; else 0.

    Valid only while as many descriptors are open as the limit allows.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    unaccounted = limit - at_start - connections
    return (
        unaccounted
        if unaccounted > max(limit // 2, DESCRIPTORS_PER_CONNECTION * connections)
        else 0
    )
