"""The master's half of the resolver: its socket, its process, and that there is one.

Runs in the master, which never looks up a client's name itself. Never raises but OSError for a
socket that cannot be made.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any

from superd.config.model import Confinement
from superd.errors import reason
from superd.master.logs.log import Log
from superd.master.plan.pools import Pool, nobody
from superd.master.workers.child import ALLOWANCE, Throttle
from superd.process.forking import fork_child, how_it_ended
from superd.resolver.resolver import main
from superd.worker.channel import FAILED, LARGEST, READY, parsed

BACKLOG = 256


class Resolver:
    """Keeps a resolver running. Its listener stays, so that workers find its successor; over an
    upgrade, too.
    """

    def __init__(self, log: Log, listener: socket.socket | None = None) -> None:
        self.log = log
        self.pid: int | None = None
        self.due = 0.0  # when to start the next one
        self._line: socket.socket | None = None
        self._throttle = Throttle()
        self._users = {os.geteuid()}
        self.listener = listener or _new_listener()
        name: bytes = self.listener.getsockname()
        self.address = name.decode("ascii")

    def serve(self, pools: Iterable[Pool]) -> None:
        """Let the users of some pools ask, too; a resolver that does not know them is replaced."""
        users = {uid for pool in pools if (uid := pool.confinement.user) is not None}
        if users <= self._users:
            return
        self._users |= users
        if self.pid is not None:
            os.kill(self.pid, signal.SIGTERM)

    def keep_running(self, now: float) -> None:
        """Start a resolver where there is none and one is due."""
        if self.pid is not None or now < self.due:
            return
        confinement = Confinement()
        if os.geteuid() == 0:
            user, group = nobody()
            confinement = Confinement(user=user, group=group)
        job = partial(main, self.listener, self._users, confinement, self.log.threshold)
        try:
            self.pid, self._line = fork_child(job)
        except OSError as error:
            self.log.error(f"cannot start the resolver: {reason(error)}")
            self.due = now + self._throttle.delay(now, was_ready=False)

    def ended(self, code: int, now: float) -> None:
        """It is gone and reaped."""
        self.pid = None
        said = self._last_words()
        failure = next((m.get("text", "") for m in said if m.get("kind") == FAILED), "")
        was_ready = any(message.get("kind") == READY for message in said)
        delay = self._throttle.delay(now, was_ready=was_ready)
        self.due = now + delay
        why = f": {failure}" if failure else ""
        when = f"in {delay:.0f} s" if delay else "now"
        self.log.error(f"the resolver {how_it_ended(code)}{why}; its successor starts {when}")

    def _last_words(self) -> list[dict[str, Any]]:
        """Return what it has said, as far as that are messages: it may have been taken over."""
        said: list[dict[str, Any]] = []
        if self._line is not None:
            with contextlib.suppress(OSError, ValueError), self._line as line:
                words = islice(iter(lambda: line.recv(LARGEST), b""), ALLOWANCE)
                said.extend(map(parsed, words))
        self._line = None
        return said

    def close(self) -> None:
        """End it, and let go of its socket."""
        self.listener.close()
        pid, self.pid = self.pid, None
        if self._line is not None:
            self._line.close()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _new_listener() -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind("")  # the kernel picks an abstract name, which is there in a jail too
    listener.listen(BACKLOG)
    return listener
