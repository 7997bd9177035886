"""Tells who has started superd how it is, as sd_notify(3) has it: systemd, or whoever speaks it.

Runs in the master. The socket's name is taken out of the environment, so that no worker or program
could speak for superd. Never raises: that nobody listens is no reason not to serve.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import time
from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING

from superd.errors import printable
from superd.master.systemd.fd_store import Store

if TYPE_CHECKING:
    from superd.master.master import Master

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE")
EXTENSION = 5.0  # seconds that are asked for at a time while connections may finish
OFTEN = 1.0
NO_ROOM = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS)


class Supervisor:
    """Looks at the master now and then, and tells what has changed since.

    The watchdog is fed for as long as the master's loop turns, whatever its workers do: those that
    hang are replaced by the master, and the services of others go on meanwhile. To be started anew
    would end these too, and not help: a plugin that hangs would hang again, and a process that the
    kernel does not let go of would outlive its master, with the listeners that it holds.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self.environment = {  # to be passed on to who takes this program's place
            name: environment.pop(name) for name in VARIABLES if name in environment
        }
        self._address = self.environment.get("NOTIFY_SOCKET", "")
        interval = self.environment.get("WATCHDOG_USEC", "")
        who = self.environment.get("WATCHDOG_PID", "")
        is_meant = interval.isdigit() and who in ("", str(os.getpid()))
        self._feed_every = int(interval) / 2e6 if is_meant else 0.0
        self._feed_at = 0.0
        self._extend_at = 0.0
        self._phase = ""
        self.store = Store(self._tell, self.environment)

    def look(self, master: Master) -> None:
        """Tell what is news; to be called at each turn of the master's loop."""
        if not self._address:
            return
        now = time.monotonic()
        phase = _phase(master)
        if phase != self._phase and self._tell(*_news(phase), f"STATUS={_status(master)}"):
            self._phase = phase
        self.store.look(master)
        if phase == "draining" and now >= self._extend_at:
            self._extend_at = now + OFTEN
            self._tell(f"EXTEND_TIMEOUT_USEC={int(EXTENSION * 1e6)}")
        if self._feed_every and now >= self._feed_at:
            self._feed_at = now + self._feed_every
            self._tell("WATCHDOG=1")

    def _tell(self, *lines: str, descriptors: Iterable[int] = ()) -> bool:
        """Send; False where there is no room for it just now. Nobody has to listen."""
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        numbers = array.array("i", descriptors)
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if numbers else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
                line.setblocking(False)
                line.sendmsg(["\n".join(lines).encode(errors="replace")], passed, 0, address)
        except (OSError, ValueError) as error:
            return getattr(error, "errno", 0) not in NO_ROOM
        return True


def _phase(master: Master) -> str:
    """Return in a word what superd does."""
    if master.state.value == "serving" and not master.may_change:
        return "reloading"
    return master.state.value


def _news(phase: str) -> tuple[str, ...]:
    if phase == "serving":
        return ("READY=1", f"MAINPID={os.getpid()}")
    if phase == "reloading":
        return ("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    return ("STOPPING=1",) if phase in ("draining", "stopping") else ()


def _status(master: Master) -> str:
    """Return one line for `systemctl status`."""
    services = len(master.current.plan.services)
    text = f"{_phase(master)}: {services} services, generation {master.current.number}"
    if master.changes.reloads and master.changes.reloads[-1].state == "failed":
        text += f"; the last reload failed: {' '.join(master.changes.reloads[-1].problems[:1])}"
    return printable(text)
