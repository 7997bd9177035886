"""The master's half of the resolver: its listener, and its process, which is restarted if it ends.

Runs in the master, which never looks up a client's name itself. Raises only OSError, if the
listener cannot be made.
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
from superd.process.forking import describe_exit, fork_child
from superd.resolver.resolver import main
from superd.worker.channel import FAILED, MAX_MESSAGE_SIZE, READY, parse_message

LISTEN_BACKLOG = 256


class Resolver:
    """Keeps a resolver process running. The listener stays, also over an upgrade, so workers reach
    the next process at the same address.
    """

    def __init__(self, log: Log, listener: socket.socket | None = None) -> None:
        self.log = log
        self.pid: int | None = None
        self.due = 0.0  # when to start the next process, by the monotonic clock
        self._channel: socket.socket | None = None
        self._throttle = Throttle()
        self._users = {os.geteuid()}
        self.listener = listener or _new_listener()
        name: bytes = self.listener.getsockname()
        self.address = name.decode("ascii")

    def admit_users_of(self, pools: Iterable[Pool]) -> None:
        """Admit the users of some pools; a process that does not know them yet is replaced."""
        users = {uid for pool in pools if (uid := pool.confinement.user) is not None}
        if users <= self._users:
            return
        self._users |= users
        if self.pid is not None:
            os.kill(self.pid, signal.SIGTERM)

    def keep_running(self, now: float) -> None:
        """Start a process if there is none and its start is due."""
        if self.pid is not None or now < self.due:
            return
        confinement = Confinement()
        if os.geteuid() == 0:
            user, group = nobody()
            confinement = Confinement(user=user, group=group)
        job = partial(main, self.listener, self._users, confinement, self.log.threshold)
        try:
            self.pid, self._channel = fork_child(job)
        except OSError as error:
            self.log.error(f"cannot start the resolver: {reason(error)}")
            self.due = now + self._throttle.delay(now, was_ready=False)

    def ended(self, code: int, now: float) -> None:
        """Plan the start of the next process: this one has ended and was reaped."""
        self.pid = None
        messages = self._read_rest()
        failure = next((m.get("text", "") for m in messages if m.get("kind") == FAILED), "")
        was_ready = any(message.get("kind") == READY for message in messages)
        delay = self._throttle.delay(now, was_ready=was_ready)
        self.due = now + delay
        why = f": {failure}" if failure else ""
        when = f"in {delay:.0f} s" if delay else "now"
        self.log.error(f"the resolver {describe_exit(code)}{why}; its successor starts {when}")

    def _read_rest(self) -> list[dict[str, Any]]:
        """Return its messages up to the first invalid one: the process may be compromised."""
        messages: list[dict[str, Any]] = []
        if self._channel is not None:
            with contextlib.suppress(OSError, ValueError), self._channel as channel:
                received = islice(iter(lambda: channel.recv(MAX_MESSAGE_SIZE), b""), ALLOWANCE)
                messages.extend(map(parse_message, received))
        self._channel = None
        return messages

    def close(self) -> None:
        """Kill the process, and close the listener."""
        self.listener.close()
        pid, self.pid = self.pid, None
        if self._channel is not None:
            self._channel.close()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _new_listener() -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind("")  # the kernel picks an abstract name, which a jail can reach, too
    listener.listen(LISTEN_BACKLOG)
    return listener
