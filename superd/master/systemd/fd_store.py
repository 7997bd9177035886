"""Has the supervisor keep the listening sockets over a crash and a restart, as FDSTORE of
sd_pid_notify_with_fds(3) has it; they come back as superd.listen.inherited tells.

Runs in the master. Never has kept what a socket unit keeps anyway. Never raises: that nothing is
kept is no reason not to serve.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from superd.listen.inherited import Inheritance, has_file, name_to_store
from superd.listen.listeners import Listener

if TYPE_CHECKING:
    from superd.master.master import Master

MOST_AT_ONCE = 253  # descriptors in one message (SCM_MAX_FD)
PATIENCE = 5000  # ms until the supervisor has to have let go

Sockets = Mapping[str, Mapping[int, int]]  # by stored name: descriptors by inode


class Tell(Protocol):
    """Sends lines and descriptors to the supervisor; False where it has no room for now."""

    def __call__(self, *lines: str, descriptors: Iterable[int] = ()) -> bool: ...


class Store:
    """What the supervisor has of our sockets, and what it should have.

    When superd is told to stop, it may be about to be started anew: so the sockets stay there, but
    for those with a file, which superd removes. `superd stop` says that it is not, and the
    supervisor is to let go of all of them, lest clients wait for nobody.
    """

    def __init__(self, tell: Tell, environment: Mapping[str, str]) -> None:
        most = environment.get("FDSTORE", "")  # since systemd 254
        self._most = int(most) if most.isdigit() else None
        self._tell = tell
        self._stored: dict[str, set[int]] = {}
        self._seen: tuple[object, ...] = ()
        self.stays_empty = False

    def resume(self, inheritance: Inheritance, existing: Iterable[Listener]) -> None:
        """Go on with what came back; have removed what is not in `existing`, and wait for it: the
        supervisor's copy would be in the way of what is bound next.
        """
        for one in inheritance.sockets:
            if one.is_own:
                self._stored.setdefault(one.name, set()).add(one.inode)
        wanted = _by_name(existing)
        if any(inodes - wanted.get(name, {}).keys() for name, inodes in self._stored.items()):
            self._bring_to(wanted)
            self._wait()

    def passed_on(self) -> dict[str, list[int]]:
        """Return as JSON what another program needs to go on."""
        return {name: list(inodes) for name, inodes in self._stored.items()}

    def take_up(self, passed: Mapping[str, Iterable[int]]) -> None:
        """Go on where another program was: the supervisor has these sockets."""
        self._stored = {name: set(inodes) for name, inodes in passed.items()}

    def look(self, master: Master) -> None:
        """Tell what has changed since; to be called at each turn of the master's loop."""
        state, watch = master.state.value, master.current.watch
        seen = (state, master.current.number, watch.changes, self.stays_empty)
        if state == "starting" or seen == self._seen:
            return
        if self.stays_empty:
            is_done = self._bring_to({})
        elif state == "serving":
            is_done = self._bring_to(_by_name(watch.listeners[: self._most]))
        else:
            is_done = self._remove([name for name in self._stored if has_file(name)])
        if is_done:
            self._seen = seen

    def _bring_to(self, wanted: Sockets) -> bool:
        """Remove and add; tell whether there was room for all of it.

        What is removed is all of a name: the rest of it is added again.
        """
        gone = [n for n, inodes in self._stored.items() if inodes - wanted.get(n, {}).keys()]
        if not self._remove(gone):
            return False
        for name, sockets in wanted.items():
            stored = self._stored.setdefault(name, set())
            new = [inode for inode in sockets if inode not in stored]
            for first in range(0, len(new), MOST_AT_ONCE):
                some = new[first : first + MOST_AT_ONCE]
                # without FDPOLL systemd drops a socket that a worker has shut down, repaired or not
                lines = ("FDSTORE=1", "FDPOLL=0", f"FDNAME={name}")
                if not self._tell(*lines, descriptors=[sockets[inode] for inode in some]):
                    return False
                stored.update(some)
        return True

    def _remove(self, names: Iterable[str]) -> bool:
        for name in names:
            if not self._tell("FDSTOREREMOVE=1", f"FDNAME={name}"):
                return False
            del self._stored[name]
        return True

    def _wait(self) -> None:
        """Wait until the supervisor has done what it was told so far (sd_notify_barrier(3))."""
        reader, writer = os.pipe()
        try:
            self._tell("BARRIER=1", descriptors=[writer])
        finally:
            os.close(writer)
        poll = select.poll()
        poll.register(reader, 0)
        poll.poll(PATIENCE)
        os.close(reader)


def _by_name(listeners: Iterable[Listener]) -> dict[str, dict[int, int]]:
    """Return what is to be kept: what superd has bound itself and what is still open."""
    found: dict[str, dict[int, int]] = {}
    for one in listeners:
        descriptor = one.socket.fileno()
        if descriptor >= 0 and not one.is_given and one.entrance is None:
            found.setdefault(name_to_store(one), {})[os.fstat(descriptor).st_ino] = descriptor
    return found
