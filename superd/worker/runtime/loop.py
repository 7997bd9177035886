"""The event loop of a worker, which belongs to all of its services.

Runs in the worker. Raises ImportError if the configured loop is not installed.
"""

from __future__ import annotations

import asyncio

from superd.worker.runtime.polling import PollingLoop


class WorkerLoop(asyncio.AbstractEventLoop):
    """An event loop that a plugin cannot stop: while the worker serves, `stop` raises."""

    is_serving = False

    def stop(self) -> None:
        if self.is_serving:
            raise RuntimeError(
                "a plugin cannot stop the event loop: all services of the worker share it"
            )
        super().stop()


def new_loop(kind: str, *, only_relays: bool = False, forks: bool = False) -> WorkerLoop:
    """Return a loop of `kind` "uvloop" or "asyncio". "auto" is uvloop where it is installed, except
    for workers that only relay: their path through asyncio is shorter.

    A worker that `forks` for handlers never has uvloop. At each later fork(2) in their processes,
    libuv would close the numbers of descriptors that superd has closed there, and which may belong
    to the handler by then.
    """
    base: type[asyncio.AbstractEventLoop] = PollingLoop
    if not forks and (kind == "uvloop" or (kind == "auto" and not only_relays)):
        try:
            import uvloop
        except ImportError:
            if kind == "uvloop":
                raise
        else:
            base = uvloop.Loop
    loop: WorkerLoop = type("Loop", (WorkerLoop, base), {})()
    return loop
