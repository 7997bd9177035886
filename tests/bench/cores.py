"""The processor cores: one for the servers, another for the load.

A program is started while the benchmark itself is pinned to a core. The program and its children
inherit that.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Cores:
    """The cores in use; the same core twice if there is only one."""

    server: int
    load: int

    @classmethod
    def available(cls) -> "Cores":
        """Choose from the cores that this process may use."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(server=cores[0], load=cores[-1])


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Pin the programs that are started inside the context to a core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
