"""Whether plugins have leaked so many descriptors that a worker can accept nobody any more.

Runs in the worker: counts at the start, and judges when accept(2) finds no descriptor left. Never
raises.
"""

from __future__ import annotations

import contextlib
import os
import resource

from superd.process.confinement import ASSUMED_MAX_DESCRIPTORS

PER_CONNECTION = 8  # descriptors that a plugin may hold for each connection, without leaking


def count_descriptors() -> int:
    """Return how many descriptors are open; in a jail there is no /proc to tell."""
    count = 0
    for number in range(ASSUMED_MAX_DESCRIPTORS):
        with contextlib.suppress(OSError):
            os.fstat(number)
            count += 1
    return count


def leaked(at_start: int, connections: int) -> int:
    """Return how many descriptors nobody accounts for, if they are most; else 0.

    To be asked when all that the limit allows are open.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    unaccounted = most - at_start - connections
    return unaccounted if unaccounted > max(most // 2, PER_CONNECTION * connections) else 0
