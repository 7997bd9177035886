"""The resolver: answers workers that ask for a host's confirmed name or a name's addresses.

Runs in a process of its own: unprivileged, outside any jail, without a listener of a service. It
never reads data of clients, and trusts no answer of a name server unchecked. A lookup that takes
too long is answered with nothing. Ends with the master. Never raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, NoReturn

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
from superd.worker.runtime.names import (
    ADDRESSES_PREFIX,
    DISTRUST_PREFIX,
    MAX_REQUEST_SIZE,
    TRUSTED_TIME,
    answer_to,
)

NAME_LOOKUP_THREADS = 16  # each lookup of a name blocks its thread
LOOKUP_TIMEOUT = 5.0  # seconds
MAX_CLIENTS = 512  # connections of workers
MAX_PENDING = 2000  # requests that are looked up or queued for a thread
MAX_CACHED = 4096  # answers
NAME_TTL = 300.0  # seconds; getnameinfo(3) does not report the TTL
NAME_FAILURE_TTL = 60.0  # seconds


def main(
    listener: socket.socket,
    users: Collection[int],
    confinement: Confinement,
    threshold: Threshold,
    sock: socket.socket,
) -> NoReturn:
    """Serve until the master ends. Called right after the fork, with all signals blocked."""
    channel = Channel(sock, threshold)
    code = int(ExitCode.FAILED)
    try:
        reset_signals()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the master acts on that of a terminal
        setproctitle("superd: resolver")
        gc.collect()  # garbage of the master closes its descriptors before their numbers are reused
        close_other_descriptors([sock.fileno(), listener.fileno()])
        clean_environment()
        addresses.load()
        limit(confinement)
        confine(confinement)
        loop = asyncio.SelectorEventLoop()
        resolver = Resolver(loop, listener, users)
        loop.add_reader(listener, resolver.accept)
        loop.add_reader(sock, loop.stop)  # readable only once the master has ended
        channel.ready()
        loop.run_forever()
        code = int(ExitCode.OK)
    except BaseException as error:  # noqa: BLE001  any failure is reported to the master
        channel.failed(code, f"the resolver: {reason(error)}")
    finally:
        os._exit(code)


class Answer(NamedTuple):
    """What was found for a request, and the times when it was, and until when it is valid."""

    found: tuple[str, ...]
    since: float
    until: float


class Resolver:
    """Looks up, caches and answers; equal requests share one lookup.

    An answer that a worker distrusts is looked up again for the next request. It is used once more
    if that finds nothing.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        users: Collection[int],
        name_of: Callable[[str], str] = confirmed_name,
        addresses_of: Callable[[str, bool], Awaitable[Found]] | None = None,
    ) -> None:
        self.loop = loop
        self.listener = listener
        self.users = {0, *users}
        self.clients: set[socket.socket] = set()
        self.pending: dict[str, set[socket.socket]] = {}
        self.cache: dict[str, Answer] = {}
        self.distrusted: dict[str, Answer] = {}
        self.threads = ThreadPoolExecutor(NAME_LOOKUP_THREADS)
        self.name_of = name_of
        self.addresses_of = addresses_of or Addresses(loop).look_up
        listener.setblocking(False)

    def accept(self) -> None:
        """Accept a worker; close the connection of any other user's process."""
        with contextlib.suppress(OSError):
            client, _ = self.listener.accept()
            if len(self.clients) >= MAX_CLIENTS or peer_ids(client)[0] not in self.users:
                client.close()
                return
            client.setblocking(False)
            self.clients.add(client)
            self.loop.add_reader(client, self._receive, client)

    def _receive(self, client: socket.socket) -> None:
        try:
            request = client.recv(MAX_REQUEST_SIZE + 1).decode("ascii")
            _check(request)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self._drop(client)  # it has closed the connection, or is not a worker
            return
        if request.startswith(DISTRUST_PREFIX):
            self._distrust(ADDRESSES_PREFIX + request.removeprefix(DISTRUST_PREFIX))
            return
        cached = self.cache.get(request)
        ttl = cached.until - self.loop.time() if cached else 0.0
        if cached and ttl > 0:
            self._answer(client, request, cached.found, ttl)
        elif request in self.pending:
            self.pending[request].add(client)
        elif len(self.pending) >= MAX_PENDING:
            self._answer(client, request, *_nothing(request))
        else:
            self.pending[request] = {client}
            self.loop.create_task(self._resolve(request))

    def _distrust(self, request: str) -> None:
        """Look a request up again when it comes next, but not soon after the last time: workers may
        be wrong, and many.
        """
        cached = self.cache.get(request)
        if cached and self.loop.time() - cached.since >= TRUSTED_TIME:
            self.distrusted[request] = self.cache.pop(request)

    async def _resolve(self, request: str) -> None:
        """Look a request up, cache the result, and answer every client that asked meanwhile."""
        found, ttl = _nothing(request)
        former = self.distrusted.pop(request, None)
        with contextlib.suppress(Exception):  # any failure means that nothing was found
            looking_up = self._look_up(request, is_again=former is not None)
            found, ttl = await asyncio.wait_for(looking_up, LOOKUP_TIMEOUT)
        now = self.loop.time()
        if not found and former and former.until > now:
            found = former.found
        while len(self.cache) >= MAX_CACHED:
            del self.cache[next(iter(self.cache))]
        self.cache[request] = Answer(found, now, now + ttl)
        for client in self.pending.pop(request):
            self._answer(client, request, found, ttl)

    async def _look_up(self, request: str, *, is_again: bool) -> Found:
        if request.startswith(ADDRESSES_PREFIX):
            return await self.addresses_of(request.removeprefix(ADDRESSES_PREFIX), is_again)
        job = self.loop.run_in_executor(self.threads, self.name_of, request)
        name = await asyncio.shield(job)
        return ((name,), NAME_TTL) if name else _nothing(request)

    def _answer(
        self, client: socket.socket, request: str, found: tuple[str, ...], ttl: float
    ) -> None:
        if client in self.clients:
            try:
                client.send(answer_to(request, found, ttl))
            except OSError:
                self._drop(client)  # it does not read, or has closed the connection

    def _drop(self, client: socket.socket) -> None:
        self.loop.remove_reader(client)
        self.clients.discard(client)
        client.close()


def _check(request: str) -> None:
    """Raise OSError or ValueError for an invalid request."""
    if request.startswith((ADDRESSES_PREFIX, DISTRUST_PREFIX)):
        name = request[1:]
        if not name or normalized_name(name) != name:
            raise ValueError(name)
    else:
        socket.inet_pton(socket.AF_INET6 if ":" in request else socket.AF_INET, request)


def _nothing(request: str) -> Found:
    ttl = addresses.FAILURE_TTL if request.startswith(ADDRESSES_PREFIX) else NAME_FAILURE_TTL
    return (), ttl
