"""Reopens the files that plugins append to, after they were renamed, for the workers.

Runs in the master. It opens only what a worker named before it was confined, and follows no link: a
worker that was taken over may be able to change the directory. Raises SuperdError for a file
that cannot be opened.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable

from superd.errors import SuperdError
from superd.master.context import Context
from superd.master.control_socket import line_of
from superd.master.logs.log import Log
from superd.master.workers.child import Child
from superd.master.workers.generation import Slot
from superd.master.workers.queries import Query
from superd.net.passing import MAX_DESCRIPTORS
from superd.worker import channel
from superd.worker.channel import AppendedFile

_KEPT_FLAGS = os.O_ACCMODE | os.O_SYNC | os.O_DSYNC  # of the worker's own
_FLAGS = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW


def reopened(file: AppendedFile) -> int:
    """Return a new descriptor of the file that has the path now; create it if it is missing."""
    directory, name = os.path.split(file.path)
    try:
        parent = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.readlink(f"/proc/self/fd/{parent}") != directory:
                raise SuperdError(f"a symbolic link leads to it now: {file.path}")
            flags = file.flags & _KEPT_FLAGS | _FLAGS
            descriptor = os.open(name, flags, file.mode, dir_fd=parent)
        finally:
            os.close(parent)
    except OSError as error:
        raise SuperdError(f"{os.strerror(error.errno or 0)}: {file.path}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise SuperdError(f"expected a regular file with one name, found another: {file.path}")
    return descriptor


class ReopenQuery(Query):
    """Has each worker replace its files, also those that drain. A worker that is not ready is left
    out; `reopen_late` finds it.

    `failures` says which log files of superd itself were not reopened; those of plugins are added.
    """

    def __init__(self, slots: Iterable[Slot], log: Log, failures: Iterable[str] = ()) -> None:
        slots = [slot for slot in slots if slot.child and slot.child.files]
        super().__init__(slots, channel.REOPEN)
        self._log = log
        self._failures = dict.fromkeys(failures)

    def send_to(self, child: Child) -> bool:
        child.files_since = time.monotonic()
        starts = range(0, len(child.files), MAX_DESCRIPTORS)
        return all(self._send_some(child, start) for start in starts)

    def _send_some(self, child: Child, start: int) -> bool:
        files = child.files[start : start + MAX_DESCRIPTORS]
        is_last = start + MAX_DESCRIPTORS >= len(child.files)
        with contextlib.ExitStack() as opened:
            numbers, descriptors = [], []
            for file in files:
                try:
                    descriptor = reopened(file)
                except SuperdError as error:
                    self._report(file.service, str(error))
                    continue
                opened.callback(os.close, descriptor)
                numbers.append(file.number)
                descriptors.append(descriptor)
            content = {"inquiry": self.number, "numbers": numbers, "is_last": is_last}
            return child.send_files(channel.REOPEN, descriptors, **content)

    def _report(self, service: str, why: str) -> None:
        text = f"file not reopened, the old one stays in use: {why}"
        if f"service.{service}: {text}" not in self._failures:  # all its workers have the same file
            self._log.error(text, service)
            self._failures[f"service.{service}: {text}"] = None

    def add(self, child: Child, content: object) -> None:
        if not isinstance(content, bool):
            raise ValueError("invalid answer to a request to replace files")
        if not content:
            self._incomplete(child, "has no descriptor free for them")

    def _incomplete(self, child: Child, why: str) -> None:
        names = ", ".join(dict.fromkeys(file.service for file in child.files))
        text = f"worker {child.pid} still has old files of {names}: it {why}"
        self._log.error(text)
        self._failures[text] = None

    def answer(self) -> bytes:
        for child in self.unanswered:
            self._incomplete(child, "does not answer")
        self.unanswered = []
        return line_of({"error": "; ".join(self._failures)} if self._failures else {})


def reopen_files(context: Context) -> ReopenQuery:
    """Reopen the log files of superd; return the query that does the same for those of plugins."""
    context.reopened = time.monotonic()
    return ReopenQuery(context.slots, context.log, context.log.reopen())


def reopen_late(context: Context) -> None:
    """Have workers replace their files that were not ready when files were reopened."""
    for slot in context.slots:
        child = slot.child
        if child and child.ready and child.files and child.files_since < context.reopened:
            ReopenQuery([slot], context.log).begin(lambda _: None)
