"""Notifies the service manager of superd's state (sd_notify(3)): systemd, or another that has this
protocol.

Runs in the master. Takes the socket's name out of the environment, so that no worker or program can
speak for superd. Raises nothing: superd serves without a service manager, too.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import time
from collections.abc import Iterable, MutableMapping

from superd.errors import printable
from superd.master.systemd.fd_store import FdStore
from superd.master.workers.generation import Generation

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE")
TIMEOUT_EXTENSION = 5.0  # seconds that are asked for at a time while connections may finish
EXTENSION_INTERVAL = 1.0  # seconds between two such requests
FULL_SOCKET_ERRNOS = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS)


class Notifier:
    """Sends the service manager what has changed since the last time.

    The watchdog is fed as long as the master's loop turns, whatever the workers do: the master
    replaces workers that hang, while other workers keep serving. A restart by the service manager
    would end all of them, and not help: a plugin that hangs would hang again, and a process that is
    stuck in the kernel would outlive its master, with the listeners that it holds.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self.environment = {  # for the program that an upgrade executes
            name: environment.pop(name) for name in VARIABLES if name in environment
        }
        self._address = self.environment.get("NOTIFY_SOCKET", "")
        interval = self.environment.get("WATCHDOG_USEC", "")
        pid = self.environment.get("WATCHDOG_PID", "")
        is_for_us = interval.isdigit() and pid in ("", str(os.getpid()))
        self._feed_interval = int(interval) / 2e6 if is_for_us else 0.0
        self._feed_at = 0.0
        self._extend_at = 0.0
        self._phase = ""
        self._seen: tuple[object, ...] = ()
        self.fd_store = FdStore(self._send, self.environment)

    def send_changes(self, phase: str, generation: Generation, reload_failure: str) -> None:
        """Send what has changed; called at each turn of the master's loop. `phase` is Context's."""
        if not self._address:
            return
        now = time.monotonic()
        seen = (phase, generation.number, generation.listeners.changes)
        if seen != self._seen:
            status = _status(phase, generation, reload_failure)
            lines = _assignments(phase) if phase != self._phase else ()
            if self._send(*lines, f"STATUS={status}"):
                self._phase, self._seen = phase, seen
        self.fd_store.send_changes(phase, generation)
        if phase == "draining" and now >= self._extend_at:
            self._extend_at = now + EXTENSION_INTERVAL
            self._send(f"EXTEND_TIMEOUT_USEC={int(TIMEOUT_EXTENSION * 1e6)}")
        if self._feed_interval and now >= self._feed_at:
            self._feed_at = now + self._feed_interval
            self._send("WATCHDOG=1")

    def _send(self, *lines: str, descriptors: Iterable[int] = ()) -> bool:
        """Send; False if the socket is full. A missing service manager is ignored."""
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        numbers = array.array("i", descriptors)
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if numbers else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendmsg(["\n".join(lines).encode(errors="replace")], passed, 0, address)
        except (OSError, ValueError) as error:
            return getattr(error, "errno", 0) not in FULL_SOCKET_ERRNOS
        return True


def _assignments(phase: str) -> tuple[str, ...]:
    """Return the lines that announce a phase."""
    if phase == "serving":
        return ("READY=1", f"MAINPID={os.getpid()}")
    if phase == "reloading":
        return ("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    return ("STOPPING=1",) if phase in ("draining", "stopping") else ()


def _status(phase: str, generation: Generation, reload_failure: str) -> str:
    """Return one line for `systemctl status`."""
    services = len(generation.plan.services)
    text = f"{phase}: {services} services, generation {generation.number}"
    if pending := generation.listeners.pending:
        first = f"service.{pending[0].service} on {pending[0].address}"
        text += f"; addresses that are not bound yet: {len(pending)}, such as {first}"
    return printable(
        f"{text}; the last reload failed: {reload_failure}" if reload_failure else text
    )
