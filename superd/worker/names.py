"""Clients' names, as a worker asks the resolver for them.

Runs in the worker, on the loop; works in a jail, since the resolver's socket has an abstract name.
Never blocks and never raises: where the resolver does not answer in time, there is no name.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

PATIENCE = 6.0  # seconds
VALID = 60.0  # seconds that an answer is remembered
MOST_KNOWN = 1024
LONGEST_REQUEST = 64  # bytes: a numeric host
LONGEST_ANSWER = 512

Answered = Callable[[str], None]


def answer_to(host: str, name: str) -> bytes:
    """Return the resolver's answer to a request, which is the host."""
    return f"{host}\0{name}".encode("ascii")


class Names:
    """Asks for names; `address` is the resolver's socket, "" where there is none."""

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str) -> None:
        self._loop = loop
        self._address = address
        self._line: socket.socket | None = None
        self._waiting: dict[str, tuple[asyncio.TimerHandle, list[Answered]]] = {}
        self._known: dict[str, tuple[str, float]] = {}

    def __len__(self) -> int:
        """Return how many hosts are being asked for."""
        return len(self._waiting)

    def ask(self, host: str, answered: Answered) -> None:
        """Have `answered(name)` called; "" where there is no confirmed name."""
        host = host.partition("%")[0]
        name, until = self._known.get(host, ("", 0.0))
        if until > self._loop.time():
            answered(name)
        elif host in self._waiting:
            self._waiting[host][1].append(answered)
        elif self._send(host):
            timer = self._loop.call_later(PATIENCE, self._settle, host, "")
            self._waiting[host] = (timer, [answered])
        else:
            answered("")

    def _send(self, host: str) -> bool:
        try:
            if self._line is None:
                line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                line.setblocking(False)
                try:
                    line.connect(self._address)
                except OSError:
                    line.close()
                    raise
                self._line = line
                self._loop.add_reader(line, self._heard)
            self._line.send(host.encode("ascii"))
        except (OSError, ValueError):
            self._hang_up()
            return False
        return True

    def _heard(self) -> None:
        assert self._line is not None
        try:
            data = self._line.recv(LONGEST_ANSWER)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up()
            return
        host, _, name = data.decode("ascii", "replace").partition("\0")
        while len(self._known) >= MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[host] = (name, self._loop.time() + VALID)
        self._settle(host, name)

    def _settle(self, host: str, name: str) -> None:
        if host in self._waiting:
            timer, callbacks = self._waiting.pop(host)
            timer.cancel()
            for answered in callbacks:
                answered(name)

    def _hang_up(self) -> None:
        """The resolver has gone; the next who asks finds its successor."""
        line, self._line = self._line, None
        if line is not None:
            with contextlib.suppress(OSError):
                self._loop.remove_reader(line)
            line.close()
        for host in list(self._waiting):
            self._settle(host, "")
