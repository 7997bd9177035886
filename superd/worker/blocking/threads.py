"""Blocking handlers in threads of the worker itself: `model = "thread"`.

The executor belongs to the loop; handlers run in their own threads. A thread cannot be killed: one
whose handler hangs after its connection was cut is given up, and another may take its place.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

from superd.observe.records import Record
from superd.worker.blocking.connection import CELLS, Account, HandlerConnection, account_of
from superd.worker.blocking.session import BlockingSession, Executor
from superd.worker.runtime.context import Context
from superd.worker.runtime.service import WorkerService


@dataclass(eq=False)
class Job:
    """One connection to be served by a thread."""

    session: BlockingSession
    talk: HandlerConnection
    given_up: bool = False


class ThreadExecutor(Executor):
    """At most `threads` of the entry, and as many again that hang and were given up."""

    def __init__(self, context: Context, service: WorkerService) -> None:
        self.context = context
        self.service = service
        self.most = service.entry.threads
        self.busy = 0
        self.idle = 0
        self.given_up = 0
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()

    @property
    def is_full(self) -> bool:
        return self.busy >= self.most

    def serve(self, session: BlockingSession) -> Callable[[], None]:
        session.tally = memoryview(bytearray(CELLS * 8)).cast("Q")
        assert session.sock is not None
        # of its own, as with a process: what a handler does to it, time-outs reach the client
        own = session.sock.dup()
        aborted = partial(self.context.loop.call_soon_threadsafe, session.abort)
        name = self.service.name
        talk = HandlerConnection(session.caller, name, own, session.tally, self._say, aborted)
        job = Job(session, talk)
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
        return partial(self._give_up, job)

    def _say(self, record: Record) -> None:
        if self.context.threshold.admits(record.level):
            self.context.loop.call_soon_threadsafe(self.context.report, record)

    def _work(self, first: Job) -> None:
        """Serve one after another, in a thread."""
        job: Job | None = first
        while job is not None:
            assert self.service.blocking is not None
            account = account_of(self.service.blocking, job.talk, self.service.plugin.name)
            if self.context.is_copy:  # the handler has forked, and both came back
                if account.failure is not None:
                    self.context.report(account.failure)
                os._exit(0)
            job.talk.let_go()
            self.context.loop.call_soon_threadsafe(self._done, job, account)
            job = self._jobs.get()

    def _done(self, job: Job, account: Account) -> None:
        if job.given_up:
            self.given_up -= 1
            self._jobs.put(None)  # another has its place
            return
        self.busy -= 1
        self.idle += 1
        job.session.ended(account)

    def _give_up(self, job: Job) -> None:
        if self.given_up >= self.most:
            return
        job.given_up = True
        self.given_up += 1
        self.busy -= 1
        text = f"its handler hangs; its thread is given up, {self.given_up} of them by now"
        job.session.log("error", text)
        job.session.died("hangs")
