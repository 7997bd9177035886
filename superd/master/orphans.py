"""Ends what programs have left: processes whose parents have ended, so that the master, as their
subreaper (PR_SET_CHILD_SUBREAPER, prctl(2)), has become their parent.

Runs in the master. While superd serves, only an orphan that keeps a listener from its successor is
ended; when superd stops, all of them are. Never ends a process that superd has not started. Raises
nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterable
from functools import partial

from superd.config.model import Confinement
from superd.listen.holders import holders_of
from superd.master.logs.log import Log
from superd.process.as_user import run_as
from superd.process.capabilities import become_subreaper
from superd.process.procfs import own_children

TERM_TIMEOUT = 0.7  # seconds between TERM and KILL
KILL_TIMEOUT = 1.0  # seconds for the kernel to end a process after KILL
CHECK_INTERVAL = 0.01  # seconds, when superd stops


class Orphans:
    """The children of the master that it has not started. `foreign` are those that it had before
    superd started.
    """

    def __init__(self, log: Log, foreign: Iterable[int] = ()) -> None:
        self.foreign = set(foreign)
        self._log = log
        self._kill_at: dict[int, float] = {}  # by the monotonic clock

    def adopt(self) -> None:
        """Become the parent of all descendants whose parents end, from now on."""
        with contextlib.suppress(OSError):  # Linux only
            become_subreaper()

    @property
    def are_ending(self) -> bool:
        """Whether an orphan that was asked to end still runs."""
        return bool(self._kill_at)

    @property
    def next_kill(self) -> float | None:
        """When the next one is killed, by the monotonic clock."""
        return min(self._kill_at.values(), default=None)

    def end_holders(
        self, inodes: Collection[int], ours: Collection[int], confinement: Confinement
    ) -> None:
        """End the orphans with this confinement that have one of these sockets open. `ours` are the
        children that the master has started.
        """
        candidates = set(own_children()) - self.foreign - set(ours)
        if not candidates or not inodes:
            return
        for pid in run_as(confinement, partial(holders_of, inodes, sorted(candidates))):
            if pid not in self._kill_at:
                self._log.warning(f"process {pid} has a listener of superd; superd ends it")
                self._kill_at[pid] = time.monotonic() + TERM_TIMEOUT
                signal_group(pid, signal.SIGTERM)

    def tick(self, now: float) -> None:
        """Kill those that have not ended in time."""
        for pid, due in self._kill_at.items():
            if now >= due:
                self._kill_at[pid] = now + KILL_TIMEOUT
                signal_group(pid, signal.SIGKILL)

    def reaped(self, pid: int) -> None:
        """Forget a child that has ended."""
        self._kill_at.pop(pid, None)
        self.foreign.discard(pid)

    def end_all(self) -> None:
        """End all of them, since superd stops. Every other child of the master has ended."""
        left = self._running()
        if left:
            self._log.info(f"ending processes that programs have left: {_listed(left)}")
        for number, timeout in ((signal.SIGTERM, TERM_TIMEOUT), (signal.SIGKILL, KILL_TIMEOUT)):
            signalled: set[int] = set()
            deadline = time.monotonic() + timeout
            while left and time.monotonic() < deadline:
                for pid in left - signalled:  # a parent's end brings more of them
                    signal_group(pid, number)
                signalled |= left
                time.sleep(CHECK_INTERVAL)
                left = self._running()
        if left:
            self._log.error(f"superd cannot end all processes of programs: {_listed(left)}")

    def _running(self) -> set[int]:
        """Return the orphans that run; reap those that have ended."""
        running = set()
        for pid in set(own_children()) - self.foreign:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    running.add(pid)
        return running


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a process and its group, unless that is superd's own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        group = os.getpgid(pid)
        if group == os.getpgrp():
            os.kill(pid, number)
        else:
            os.killpg(group, number)


def _listed(pids: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(pids)))
