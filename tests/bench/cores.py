"""Which processor core runs what: the servers one, the load another.

A program is pinned by starting it while the benchmark itself is pinned; it inherits that, and so
do its children.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Cores:
    """The cores in use; the same one twice where there is only one."""

    server: int
    load: int

    @classmethod
    def available(cls) -> "Cores":
        """Choose from the cores that this process may use."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(server=cores[0], load=cores[-1])


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Pin what is started inside the context to a core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
