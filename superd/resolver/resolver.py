"""The resolver's life: answers workers that ask for the confirmed name of a host.

Runs in a process of its own: unprivileged, outside any jail, without a listener of a service. It
never reads what a client sends, and believes nothing that a name server says. A look-up that takes
too long is answered with no name. Ends with the master. Never raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from setproctitle import setproctitle

from superd.config.model import Confinement
from superd.errors import ExitCode, reason
from superd.net.credentials import ids_of_peer
from superd.net.names import confirmed_name
from superd.worker.channel import Channel
from superd.worker.confinement import confine, keep_only, limit
from superd.worker.environment import clean_environment
from superd.worker.names import LONGEST_REQUEST, answer_to
from superd.worker.signals import reset_signals

THREADS = 16  # look-ups at a time, since each blocks its thread
PATIENCE = 5.0  # seconds until somebody is told that there is no name
MOST_CLIENTS = 512
MOST_WAITING = 2000  # hosts that are looked up or wait for a thread
MOST_KNOWN = 4096
NAME_IS_VALID = 300.0  # seconds; name servers say how long, but getnameinfo(3) does not tell
FAILURE_IS_VALID = 60.0


def main(
    listener: socket.socket, users: Collection[int], confinement: Confinement, line: socket.socket
) -> NoReturn:
    """Serve until the master goes. Called right after the fork, with all signals blocked."""
    channel = Channel(line)
    code = int(ExitCode.FAILED)
    try:
        reset_signals()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for the master
        setproctitle("superd: resolver")
        keep_only([line.fileno(), listener.fileno()])
        clean_environment()
        limit(confinement)
        confine(confinement)
        loop = asyncio.SelectorEventLoop()
        resolver = Resolver(loop, listener, users)
        loop.add_reader(listener, resolver.accept)
        loop.add_reader(line, loop.stop)  # it is readable only once the master has gone
        channel.ready()
        loop.run_forever()
        code = int(ExitCode.OK)
    except BaseException as error:  # noqa: BLE001  the master is told, whatever it is
        channel.failed(code, f"the resolver: {reason(error)}")
    finally:
        os._exit(code)


class Resolver:
    """Looks up, remembers, and answers; equal requests are looked up once."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        users: Collection[int],
        look_up: Callable[[str], str] = confirmed_name,
    ) -> None:
        self.loop = loop
        self.listener = listener
        self.users = {0, *users}
        self.look_up = look_up
        self.clients: set[socket.socket] = set()
        self.waiting: dict[str, set[socket.socket]] = {}
        self.known: dict[str, tuple[str, float]] = {}
        self.threads = ThreadPoolExecutor(THREADS)
        listener.setblocking(False)

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self.listener.accept()
            if len(self.clients) >= MOST_CLIENTS or ids_of_peer(client)[0] not in self.users:
                client.close()
                return
            client.setblocking(False)
            self.clients.add(client)
            self.loop.add_reader(client, self._heard, client)

    def _heard(self, client: socket.socket) -> None:
        try:
            host = client.recv(LONGEST_REQUEST + 1).decode("ascii")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            socket.inet_pton(family, host)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self._drop(client)  # it has gone, or asks what no worker would
            return
        name, until = self.known.get(host, ("", 0.0))
        if until > self.loop.time():
            self._answer(client, host, name)
        elif host in self.waiting:
            self.waiting[host].add(client)
        elif len(self.waiting) >= MOST_WAITING:
            self._answer(client, host, "")
        else:
            self.waiting[host] = {client}
            self.loop.create_task(self._looked_up(host))

    async def _looked_up(self, host: str) -> None:
        job = self.loop.run_in_executor(self.threads, self.look_up, host)
        name = ""
        with contextlib.suppress(Exception):  # whatever it is, there is no name
            name = await asyncio.wait_for(asyncio.shield(job), PATIENCE)
        while len(self.known) >= MOST_KNOWN:
            del self.known[next(iter(self.known))]
        valid = NAME_IS_VALID if name else FAILURE_IS_VALID
        self.known[host] = (name, self.loop.time() + valid)
        for client in self.waiting.pop(host):
            self._answer(client, host, name)

    def _answer(self, client: socket.socket, host: str, name: str) -> None:
        if client in self.clients:
            try:
                client.send(answer_to(host, name))
            except OSError:
                self._drop(client)  # it does not read, or has gone

    def _drop(self, client: socket.socket) -> None:
        self.loop.remove_reader(client)
        self.clients.discard(client)
        client.close()
