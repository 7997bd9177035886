"""Answers the queries of workers that serve metrics: superd's readiness, and all metrics.

Runs in the master. Collects metrics a few times a second at most, however many workers ask and
however often. Raises ValueError for a query that a worker may not make.
"""

from __future__ import annotations

import fcntl
import os
import time

from superd.config.model import METRICS
from superd.master.context import Context
from superd.master.report.metrics import metrics
from superd.master.report.status import why_not_ready
from superd.master.workers.child import Child
from superd.worker import channel

MIN_COLLECT_INTERVAL = 0.25  # seconds in which all queries get the same metrics
MAX_TIME_SHARE = 0.1  # of the master's time that collecting may take


class ReportQueries:
    """Answers workers, and knows which of them may ask."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._file: int | None = None  # the metrics that were collected last
        self._collect_at = 0.0

    def answer(self, child: Child, what: object) -> None:
        """Answer a query of a worker. If its channel is full, the answer is lost; the worker waits
        for a limited time only.
        """
        if not self._may_ask(child):
            raise ValueError("a query of a worker that serves no metrics")
        if what == channel.READINESS:
            child.send(channel.OBSERVE, what=what, text=why_not_ready(self._context))
        elif what == channel.METRICS:
            self._collect()
            if self._file is not None:
                child.send_files(channel.OBSERVE, [self._file], what=what)
        else:
            raise ValueError(f"unknown query {what!r}")

    def _may_ask(self, child: Child) -> bool:
        return any(
            entry.plugin == METRICS
            for slot in self._context.slots
            if slot.child is child
            for entry in slot.pool.services.values()
        )

    def _collect(self) -> None:
        """Collect metrics into a new file, unless the last ones are recent enough."""
        started = time.monotonic()
        if started < self._collect_at:
            return
        if self._file is not None:
            os.close(self._file)
        self._file = file_with(metrics(self._context).encode())
        took = time.monotonic() - started
        self._collect_at = started + max(MIN_COLLECT_INTERVAL, took / MAX_TIME_SHARE)


def file_with(text: bytes) -> int | None:
    """Return a file in memory that no process can change (memfd_create(2), F_ADD_SEALS); None if
    the system has no memory for it, or no such files.
    """
    try:
        file = os.memfd_create("metrics", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (OSError, AttributeError):
        return None
    try:
        with open(file, "wb", closefd=False) as written:
            written.write(text)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(file)
        return None
    return file
