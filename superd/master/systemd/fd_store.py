"""Has the service manager keep the listening sockets over a crash and a restart, by FDSTORE of
sd_pid_notify_with_fds(3); superd.listen.inherited takes them back.

Runs in the master. Never stores a socket of a socket unit, which systemd keeps anyway. Raises
nothing: superd serves without a descriptor store, too.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Mapping
from typing import Protocol

from superd.listen.inherited import Inheritance, fd_name, has_file
from superd.listen.listener import Listener
from superd.master.workers.generation import Generation

MAX_DESCRIPTORS = 253  # in one message (SCM_MAX_FD)
BARRIER_TIMEOUT_MS = 5000  # that the service manager may take to remove sockets

Sockets = Mapping[str, Mapping[int, int]]  # by stored name: descriptors by inode


class Send(Protocol):
    """Sends lines and descriptors to the service manager; False if its socket is full."""

    def __call__(self, *lines: str, descriptors: Iterable[int] = ()) -> bool: ...


class FdStore:
    """The sockets that the service manager keeps, and those that it should keep.

    When superd is stopped, it may be about to be restarted. So the sockets stay in the store,
    except for those with a file, which superd removes. `superd stop` sets `stays_empty`: superd
    will not be back, and clients must not wait on a socket that no process serves.
    """

    def __init__(self, send: Send, environment: Mapping[str, str]) -> None:
        limit = environment.get("FDSTORE", "")  # since systemd 254
        self._limit = int(limit) if limit.isdigit() else None
        self._send = send
        self._stored: dict[str, set[int]] = {}
        self._seen: tuple[object, ...] = ()
        self.stays_empty = False

    def resume(self, inheritance: Inheritance, existing: Iterable[Listener]) -> None:
        """Start from the sockets that the service manager passed. Sockets not in `existing` are
        removed from the store, and this waits for it: the stored copy would block the next bind.
        """
        for one in inheritance.sockets:
            if one.is_own:
                self._stored.setdefault(one.name, set()).add(one.inode)
        wanted = _by_name(existing)
        if any(inodes - wanted.get(name, {}).keys() for name, inodes in self._stored.items()):
            self._update(wanted)
            self._wait()

    def passed_on(self) -> dict[str, list[int]]:
        """Return the names and inodes of the stored sockets as JSON, for an upgrade."""
        return {name: list(inodes) for name, inodes in self._stored.items()}

    def take_up(self, passed: Mapping[str, Iterable[int]]) -> None:
        """Start from what `passed_on` of the program before an upgrade returned."""
        self._stored = {name: set(inodes) for name, inodes in passed.items()}

    def send_changes(self, phase: str, generation: Generation) -> None:
        """Send what has changed; called at each turn of the master's loop."""
        listeners = generation.listeners
        seen = (phase, generation.number, listeners.changes, self.stays_empty)
        if phase == "starting" or seen == self._seen:
            return
        if self.stays_empty:
            is_done = self._update({})
        elif phase in ("serving", "reloading"):
            is_done = self._update(_by_name(listeners.all[: self._limit]))
        else:
            is_done = self._remove([name for name in self._stored if has_file(name)])
        if is_done:
            self._seen = seen

    def _update(self, wanted: Sockets) -> bool:
        """Remove and add sockets; return whether all messages could be sent.

        Sockets are removed by name, all of a name at once: those still wanted are added again.
        """
        outdated = [n for n, inodes in self._stored.items() if inodes - wanted.get(n, {}).keys()]
        if not self._remove(outdated):
            return False
        for name, sockets in wanted.items():
            stored = self._stored.setdefault(name, set())
            new = [inode for inode in sockets if inode not in stored]
            for first in range(0, len(new), MAX_DESCRIPTORS):
                some = new[first : first + MAX_DESCRIPTORS]
                # without FDPOLL=0 systemd drops a socket that a worker shut down, repaired or not
                lines = ("FDSTORE=1", "FDPOLL=0", f"FDNAME={name}")
                if not self._send(*lines, descriptors=[sockets[inode] for inode in some]):
                    return False
                stored.update(some)
        return True

    def _remove(self, names: Iterable[str]) -> bool:
        for name in names:
            if not self._send("FDSTOREREMOVE=1", f"FDNAME={name}"):
                return False
            del self._stored[name]
        return True

    def _wait(self) -> None:
        """Wait until the service manager has handled all messages (sd_notify_barrier(3))."""
        reader, writer = os.pipe()
        try:
            self._send("BARRIER=1", descriptors=[writer])
        finally:
            os.close(writer)
        poll = select.poll()
        poll.register(reader, 0)
        poll.poll(BARRIER_TIMEOUT_MS)
        os.close(reader)


def _by_name(listeners: Iterable[Listener]) -> dict[str, dict[int, int]]:
    """Return the sockets to store: those that superd has bound itself and that are still open."""
    found: dict[str, dict[int, int]] = {}
    for one in listeners:
        descriptor = one.socket.fileno()
        if descriptor >= 0 and not one.is_external and one.entrance is None:
            found.setdefault(fd_name(one), {})[os.fstat(descriptor).st_ino] = descriptor
    return found
