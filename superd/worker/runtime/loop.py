"""The event loop of a worker, which belongs to all of its services.

Runs in the worker. Raises ImportError if the configured loop is not installed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator, Iterator
from typing import Any, TypeVar

from superd.worker.runtime.polling import PollingLoop

T = TypeVar("T")


class WorkerLoop(asyncio.AbstractEventLoop):
    """An event loop that a plugin cannot stop: while the worker serves, `stop` raises.

    It notes tasks that have failed. asyncio itself reports one whose result no code awaits only
    once it is garbage, and a plugin may keep a reference for as long as it runs.
    """

    is_serving = False

    def __init__(self) -> None:
        super().__init__()
        self._failed: list[asyncio.Task[Any]] = []
        self._failed_before: list[asyncio.Task[Any]] = []

    def create_task(
        self, coro: Generator[Any, None, T] | Coroutine[Any, Any, T], **options: Any
    ) -> asyncio.Task[T]:
        task = super().create_task(coro, **options)
        task.add_done_callback(self._note_failure)
        return task

    def _note_failure(self, task: asyncio.Task[Any]) -> None:
        if task._log_traceback:
            self._failed.append(task)

    def failed_tasks(self) -> Iterator[tuple[str, BaseException]]:
        """Yield name and exception of each task that had failed before the last call already, and
        whose exception no code has retrieved since.
        """
        found, self._failed_before, self._failed = self._failed_before, self._failed, []
        for task in found:
            if task._log_traceback and (error := task.exception()):
                yield task.get_name(), error

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
