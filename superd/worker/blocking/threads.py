"""Blocking handlers in threads of the worker itself: `model = "thread"`.

The executor belongs to the loop; handlers run in their own threads. A thread cannot be killed: one
whose handler hangs after its connection was cut is abandoned, and another thread may be started.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

from superd.observe.records import Record
from superd.worker.blocking.connection import (
    TALLY_SIZE,
    HandlerConnection,
    HandlerResult,
    run_handler,
)
from superd.worker.blocking.session import BlockingSession, Executor
from superd.worker.runtime.context import Context
from superd.worker.runtime.output import serving
from superd.worker.runtime.service import WorkerService


@dataclass(eq=False)
class Job:
    """One connection for a thread to serve."""

    session: BlockingSession
    conn: HandlerConnection
    is_abandoned: bool = False


class ThreadExecutor(Executor):
    """At most `threads` of the entry, and as many again that hang and were abandoned."""

    def __init__(self, context: Context, service: WorkerService) -> None:
        self.context = context
        self.service = service
        self.max_threads = service.entry.threads
        self.busy = 0
        self.idle = 0
        self.abandoned = 0
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()

    @property
    def is_full(self) -> bool:
        return self.busy >= self.max_threads

    def serve(self, session: BlockingSession) -> Callable[[], None]:
        session.tally = memoryview(bytearray(TALLY_SIZE)).cast("Q")
        assert session.sock is not None
        # a copy, as with a process: time-outs reach the client whatever a handler does to it
        own = session.sock.dup()
        aborted = partial(self.context.loop.call_soon_threadsafe, session.abort)
        name = self.service.name
        conn = HandlerConnection(session.client, name, own, session.tally, self._report, aborted)
        job = Job(session, conn)
        if self.idle:
            self.idle -= 1
            self._jobs.put(job)
        else:
            work = threading.Thread(
                target=self._work, args=(job,), name=f"superd: {name}", daemon=True
            )
            try:
                work.start()
            except RuntimeError:
                own.close()
                raise
        self.busy += 1
        return partial(self._abandon, job)

    def _report(self, record: Record) -> None:
        if self.context.threshold.admits(record.level):
            self.context.loop.call_soon_threadsafe(self.context.report, record)

    def _work(self, first: Job) -> None:
        """Serve one connection after another, in a thread."""
        serving.set(self.service.name)
        job: Job | None = first
        while job is not None:
            assert self.service.blocking is not None
            result = run_handler(self.service.blocking, job.conn, self.service.plugin.name)
            if self.context.is_copy:  # the handler has forked, and returned in both processes
                if result.failure is not None:
                    self.context.report(result.failure)
                os._exit(0)
            job.conn.close_socket()
            self.context.loop.call_soon_threadsafe(self._done, job, result)
            job = self._jobs.get()

    def _done(self, job: Job, result: HandlerResult) -> None:
        if job.is_abandoned:
            self.abandoned -= 1
            self._jobs.put(None)  # end this thread, or another one that is idle
            return
        self.busy -= 1
        self.idle += 1
        job.session.ended(result)

    def _abandon(self, job: Job) -> None:
        if self.abandoned >= self.max_threads:
            return
        job.is_abandoned = True
        self.abandoned += 1
        self.busy -= 1
        text = f"its handler hangs; its thread is abandoned, {self.abandoned} so far"
        job.session.log("error", text)
        job.session.died("hangs")
