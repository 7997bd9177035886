"""Both ends of a forwarded connection in the test's process: clients, and their targets.

A target is a plain listening socket from which the test accepts, so the test holds both ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from superd.net.closing import undelivered
from tests.support.clients import connect_tcp, connect_unix, reset
from tests.support.harness import EVENT_TIMEOUT, Address, Superd, until
from tests.support.usage import open_descriptors

KINDS = ("tcp", "unix")
PAIRS = [f"{listen}-{target}" for listen in KINDS for target in KINDS]
BLOCK = os.urandom(1 << 16)

_numbers = itertools.count()


class Target:
    """A listening socket of a test, and its address for `to`. Unix names are abstract, so they can
    be reached from every jail.
    """

    def __init__(self, kind: str = "tcp", host: str = "127.0.0.1", backlog: int = 512) -> None:
        self.kind = kind
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(socket.AF_UNIX if kind == "unix" else family)
        self.sock.settimeout(EVENT_TIMEOUT)
        if kind == "unix":
            name = f"superd-test-{os.getpid()}-{next(_numbers)}"
            self.address = f"unix://@{name}"
            self.sock.bind(f"\0{name}")
        else:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.sock.bind((host, 0))
            port = self.sock.getsockname()[1]
            self.address = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        if backlog >= 0:
            self.sock.listen(backlog)

    def accept(self) -> socket.socket:
        sock, _ = self.sock.accept()
        sock.settimeout(EVENT_TIMEOUT)
        return sock

    def fill_backlog(self, stack: contextlib.ExitStack) -> None:
        """Connect to it until it accepts no more connections."""
        for _ in range(10):
            client = stack.enter_context(socket.socket(self.sock.family))
            client.setblocking(False)
            try:
                client.connect(self.sock.getsockname())
            except BlockingIOError:
                if self.kind == "unix" or not select.select([], [client], [], 0.2)[1]:
                    return
        raise AssertionError("the backlog does not fill")

    def close(self) -> None:
        self.sock.close()


class Pair:
    """A service that listens on one kind of socket and forwards to another."""

    def __init__(self, superd: Superd, service: str, target: Target, listen: str = "tcp") -> None:
        self.superd = superd
        self.service = service
        self.target = target
        self.listen = listen

    def connect(self) -> socket.socket:
        """Connect a client, and return its end."""
        if self.listen == "unix":
            return connect_unix(self.superd.directory / self.service)
        return connect_tcp(self.address)

    @property
    def address(self) -> Address:
        return self.superd.address(self.service)

    @contextlib.contextmanager
    def open(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Connect, and yield both ends."""
        with self.connect() as client, self.target.accept() as server:
            yield client, server

    @contextlib.contextmanager
    def open_many(self, number: int) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(self.open()) for _ in range(number)]


def entry(name: str, target: Target | str, listen: str = "tcp", more: str = "") -> str:
    """Return an entry; `more` has further options, then lines with keys of the entry."""
    options, _, keys = more.partition("\n")
    where = "tcp://127.0.0.1:0" if listen == "tcp" else f"unix://{{directory}}/{name}"
    to = target if isinstance(target, str) else target.address
    return f"""
    [service.{name}]
    plugin = "forward"
    listen = "{where if "://" not in listen else listen}"
    options = {{ to = "{to}"{", " + options if options else ""} }}
    {keys}
    """


@contextlib.contextmanager
def serving(directory: Path, toml: str) -> Iterator[Superd]:
    """Run a superd, for all tests of a module."""
    one = Superd(directory, toml.replace("{directory}", str(directory)))
    try:
        yield one.start()
        assert "Traceback" not in one.log()
    finally:
        one.stop()
        print(f"--- log of {one.file}\n{one.log()}")


@contextlib.contextmanager
def descriptors_are_closed(superd: Superd) -> Iterator[None]:
    """Wait at the end until the workers have as many descriptors as before.

    Only root may read that of a confined worker; nothing is checked for another user.
    """
    workers = superd.workers() if os.geteuid() == 0 else []
    before = open_descriptors(workers)
    yield
    until(lambda: open_descriptors(workers) == before, "all descriptors to be closed", 5)


@contextlib.contextmanager
def stopped(pair: Pair) -> Iterator[None]:
    """Stop the worker meanwhile, so that it sees all events of that time together."""
    (worker,) = pair.superd.workers()
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


def wait_until_delivered(sock: socket.socket) -> None:
    """Wait until the peer's kernel has all sent data."""
    until(lambda: undelivered(sock) == 0, "everything to be delivered")


def abort(sock: socket.socket) -> None:
    """Abort a connection: by a reset, or on a unix socket by a close with unread data."""
    if sock.family == socket.AF_UNIX:
        assert select.select([sock], [], [], EVENT_TIMEOUT)[0], "there is no unread data"
        sock.close()
    else:
        reset(sock)


def stays_quiet(sock: socket.socket, seconds: float) -> bool:
    """Tell whether a socket has no input and no end for some seconds."""
    return not select.select([sock], [], [], seconds)[0]


def seconds_until_readable(sock: socket.socket, since: float) -> float:
    """Wait for input or an end; return the seconds since `since`."""
    assert select.select([sock], [], [], EVENT_TIMEOUT)[0]
    return time.monotonic() - since


class Stream:
    """An endless stream of bytes that depend on their position, and a digest of those sent."""

    def __init__(self, seed: int = 0) -> None:
        self.offset = seed * 997 % len(BLOCK)
        self.count = 0
        self.digest = hashlib.sha256()

    def push(self, sock: socket.socket, limit: int = 1 << 40) -> int:
        """Send without blocking until the socket is full; return the number of sent bytes."""
        before = self.count
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while (left := limit - (self.count - before)) > 0:
                part = memoryview(BLOCK)[self.offset : self.offset + left]
                sent = sock.send(part)
                self.sent(part[:sent])
        sock.settimeout(EVENT_TIMEOUT)
        return self.count - before

    def sent(self, part: memoryview) -> None:
        """Count bytes that have been sent."""
        self.digest.update(part)
        self.count += len(part)
        self.offset = (self.offset + len(part)) % len(BLOCK)

    def fill(self, sock: socket.socket) -> None:
        """Send until the socket stays full."""
        while self.push(sock) or select.select([], [sock], [], 0.1)[1]:
            pass


def digest_of(sock: socket.socket) -> tuple[int, str]:
    """Read to the end; return the number of bytes and their digest."""
    digest, count = hashlib.sha256(), 0
    while part := sock.recv(1 << 16):
        digest.update(part)
        count += len(part)
    return count, digest.hexdigest()
