"""Ends programs that an earlier superd with this configuration has left with a listener, because it
was killed together with its workers.

Runs in the process that becomes the master, before it binds; the pid file is locked, so no other
superd with this configuration runs. A program is known by the variable in its environment that
names the configuration, and by a socket at one of the configuration's addresses. Raises nothing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path

from superd.listen.holders import holders_of, sockets_at
from superd.listen.listener import Listener
from superd.master.logs.log import Log
from superd.master.orphans import TERM_TIMEOUT, signal_group
from superd.master.plan.plan import Plan
from superd.plugin.service import HANDED_BY
from superd.process.as_user import run_as

TIMEOUT = 3.0  # seconds; workers that still drain close their sockets within one
CHECK_INTERVAL = 0.05  # seconds


def end_left_behind(plan: Plan, existing: Iterable[Listener], log: Log) -> None:
    """End such programs, and wait until they and their workers have closed the sockets; those of
    `existing` stay open, as a service manager has them.
    """
    addresses = [address for entry in plan.services.values() for address in entry.listen]
    passed_on = {os.fstat(listener.socket.fileno()).st_ino for listener in existing}
    kill_at: dict[int, float] = {}
    held: set[int] = set()
    deadline = time.monotonic() + TIMEOUT
    while (now := time.monotonic()) < deadline:
        inodes = sockets_at(addresses)
        found = _found(plan, inodes)
        if found:
            held |= inodes - passed_on
        elif held.isdisjoint(inodes):
            return
        for pid in found:
            if pid not in kill_at:
                log.warning(f"process {pid} has a listener of an earlier superd; superd ends it")
                kill_at[pid] = now + TERM_TIMEOUT
                signal_group(pid, signal.SIGTERM)
            elif now >= kill_at[pid]:
                signal_group(pid, signal.SIGKILL)
        time.sleep(CHECK_INTERVAL)


def _found(plan: Plan, inodes: Collection[int]) -> set[int]:
    """Return the programs that have these sockets, as the users of the plan see them."""
    if not inodes:
        return set()
    find = partial(_marked_holders, str(plan.settings.file), inodes)
    users = {(one.user, one.group): one for pool in plan.pools for one in [pool.confinement]}
    return {pid for confinement in users.values() for pid in run_as(confinement, find)}


def _marked_holders(file: str, inodes: Collection[int]) -> list[int]:
    """Return the processes with these sockets whose environment names the configuration."""
    return [pid for pid in holders_of(inodes) if _is_marked(pid, file)]


def _is_marked(pid: int, file: str) -> bool:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"{HANDED_BY}={file}".encode(errors="surrogateescape") in variables
