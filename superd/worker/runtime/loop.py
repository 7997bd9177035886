"""The event loop of a worker, which belongs to all of its services.

Runs in the worker. Raises ImportError where the loop that is wanted is not installed.
"""

from __future__ import annotations

import asyncio

from superd.worker.runtime.polling import PollingLoop


class WorkerLoop(asyncio.AbstractEventLoop):
    """An event loop that a plugin cannot stop: while it serves that raises in the plugin."""

    is_serving = False

    def stop(self) -> None:
        if self.is_serving:
            raise RuntimeError("a plugin cannot stop the event loop: it is everybody's")
        super().stop()


def new_loop(kind: str, *, only_relays: bool = False) -> WorkerLoop:
    """Return a loop of "uvloop" or "asyncio". "auto" is uvloop where it is installed, except for
    workers that do nothing but relay: they have the shorter path in asyncio's.
    """
    made: type[asyncio.AbstractEventLoop] = PollingLoop
    if kind == "uvloop" or (kind == "auto" and not only_relays):
        try:
            import uvloop
        except ImportError:
            if kind == "uvloop":
                raise
        else:
            made = uvloop.Loop
    loop: WorkerLoop = type("Loop", (WorkerLoop, made), {})()
    return loop
