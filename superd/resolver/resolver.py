"""The resolver's life: answers workers that ask for a host's confirmed name or a name's addresses.

Runs in a process of its own: unprivileged, outside any jail, without a listener of a service. It
never reads what a client sends, and believes nothing that a name server says. A look-up that takes
too long is answered with nothing. Ends with the master. Never raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from setproctitle import setproctitle

from superd.config.model import Confinement
from superd.errors import ExitCode, reason
from superd.net.credentials import peer_ids
from superd.net.names import confirmed_name, normalized_name
from superd.observe.records import Threshold
from superd.process.confinement import close_other_descriptors, confine, limit
from superd.process.environment import clean_environment
from superd.process.forking import reset_signals
from superd.resolver import addresses
from superd.resolver.addresses import Addresses, Found
from superd.worker.channel import Channel
from superd.worker.runtime.names import ADDRESSES_PREFIX, MAX_REQUEST_SIZE, answer_to

THREADS = 16  # look-ups at a time, since each blocks its thread
PATIENCE = 5.0  # seconds until somebody is told that there is none
MOST_CLIENTS = 512
MOST_WAITING = 2000  # requests that are looked up or wait for a thread
MOST_KNOWN = 4096
NAME_TTL = 300.0  # seconds; name servers say how long, but getnameinfo(3) does not tell
FAILURE_TTL = 60.0


def main(
    listener: socket.socket,
    users: Collection[int],
    confinement: Confinement,
    threshold: Threshold,
    line: socket.socket,
) -> NoReturn:
    """Serve until the master goes. Called right after the fork, with all signals blocked."""
    channel = Channel(line, threshold)
    code = int(ExitCode.FAILED)
    try:
        reset_signals()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for the master
        setproctitle("superd: resolver")
        close_other_descriptors([line.fileno(), listener.fileno()])
        clean_environment()
        addresses.load()
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
        name_of: Callable[[str], str] = confirmed_name,
        addresses_of: Callable[[str], Awaitable[Found]] | None = None,
    ) -> None:
        self.loop = loop
        self.listener = listener
        self.users = {0, *users}
        self.clients: set[socket.socket] = set()
        self.waiting: dict[str, set[socket.socket]] = {}
        self.known: dict[str, tuple[tuple[str, ...], float]] = {}
        self.threads = ThreadPoolExecutor(THREADS)
        self.name_of = name_of
        self.addresses_of = addresses_of or Addresses(loop).look_up
        listener.setblocking(False)

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self.listener.accept()
            if len(self.clients) >= MOST_CLIENTS or peer_ids(client)[0] not in self.users:
                client.close()
                return
            client.setblocking(False)
            self.clients.add(client)
            self.loop.add_reader(client, self._heard, client)

    def _heard(self, client: socket.socket) -> None:
        try:
            request = client.recv(MAX_REQUEST_SIZE + 1).decode("ascii")
            _check(request)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self._drop(client)  # it has gone, or asks what no worker would
            return
        found, until = self.known.get(request, ((), 0.0))
        valid = until - self.loop.time()
        if valid > 0:
            self._answer(client, request, found, valid)
        elif request in self.waiting:
            self.waiting[request].add(client)
        elif len(self.waiting) >= MOST_WAITING:
            self._answer(client, request, *_nothing(request))
        else:
            self.waiting[request] = {client}
            self.loop.create_task(self._looked_up(request))

    async def _looked_up(self, request: str) -> None:
        found, valid = _nothing(request)
        with contextlib.suppress(Exception):  # whatever it is, nothing was found
            found, valid = await asyncio.wait_for(self._look_up(request), PATIENCE)
        while len(self.known) >= MOST_KNOWN:
            del self.known[next(iter(self.known))]
        self.known[request] = (found, self.loop.time() + valid)
        for client in self.waiting.pop(request):
            self._answer(client, request, found, valid)

    async def _look_up(self, request: str) -> Found:
        if request.startswith(ADDRESSES_PREFIX):
            return await self.addresses_of(request.removeprefix(ADDRESSES_PREFIX))
        job = self.loop.run_in_executor(self.threads, self.name_of, request)
        name = await asyncio.shield(job)
        return ((name,), NAME_TTL) if name else _nothing(request)

    def _answer(
        self, client: socket.socket, request: str, found: tuple[str, ...], valid: float
    ) -> None:
        if client in self.clients:
            try:
                client.send(answer_to(request, found, valid))
            except OSError:
                self._drop(client)  # it does not read, or has gone

    def _drop(self, client: socket.socket) -> None:
        self.loop.remove_reader(client)
        self.clients.discard(client)
        client.close()


def _check(request: str) -> None:
    """Raise OSError or ValueError for what is no request."""
    if request.startswith(ADDRESSES_PREFIX):
        name = request.removeprefix(ADDRESSES_PREFIX)
        if not name or normalized_name(name) != name:
            raise ValueError(name)
    else:
        socket.inet_pton(socket.AF_INET6 if ":" in request else socket.AF_INET, request)


def _nothing(request: str) -> Found:
    return addresses.NOTHING if request.startswith(ADDRESSES_PREFIX) else ((), FAILURE_TTL)
