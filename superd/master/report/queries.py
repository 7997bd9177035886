"""Answers workers that serve metrics: how superd is, and what is measured of it.

Runs in the master. However many of them ask, and however often, metrics are collected a few times
a second at most. Raises ValueError for a question that a worker must not ask.
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

SHARED = 0.25  # seconds that all who ask have the same metrics
SHARE = 0.1  # of the master's time, at most


class ReportQueries:
    """Knows which worker may ask what."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._file: int | None = None  # with the metrics
        self._collect_at = 0.0

    def answer(self, child: Child, what: object) -> None:
        """Answer a question of a worker. An answer that its line does not take is lost, and the
        worker does not wait for it for ever.
        """
        if not self._may_ask(child):
            raise ValueError("a question of a worker that serves no metrics")
        if what == channel.READINESS:
            child.ask(channel.OBSERVE, what=what, text=why_not_ready(self._context))
        elif what == channel.METRICS:
            self._collect()
            if self._file is not None:
                child.hand(channel.OBSERVE, self._file, what=what)
        else:
            raise ValueError(f"nobody can observe {what!r}")

    def _may_ask(self, child: Child) -> bool:
        return any(
            entry.plugin == METRICS
            for slot in self._context.slots
            if slot.child is child
            for entry in slot.pool.services.values()
        )

    def _collect(self) -> None:
        """Have a file with metrics that are not old."""
        started = time.monotonic()
        if started < self._collect_at:
            return
        if self._file is not None:
            os.close(self._file)
        self._file = file_with(metrics(self._context).encode())
        took = time.monotonic() - started
        self._collect_at = started + max(SHARED, took / SHARE)


def file_with(text: bytes) -> int | None:
    """Return a file that is nowhere but in memory, and that nobody can change; None where there is
    no memory for it, or no such files (memfd_create(2)).
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
