"""The peer of a client: a socket in a thread with a handler of the test, or a real program.

Runs in the test's process. An exception of a handler is raised in the test.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, TypeVar

from tests.support.harness import EVENT_TIMEOUT, command, read_lines

T = TypeVar("T")
READ_SIZE = 1 << 18  # bytes


@contextlib.contextmanager
def peer(
    handle: Callable[[socket.socket], T], listener: socket.socket | None = None
) -> Iterator[tuple[str, Future[T]]]:
    """Serve one connection; yield the address and the future result of `handle`."""
    listener = listener or socket.create_server(("127.0.0.1", 0))
    listener.settimeout(EVENT_TIMEOUT)

    def serve() -> T:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(EVENT_TIMEOUT)
            return handle(connection)

    with listener, ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        yield endpoint(listener), served
        served.result(EVENT_TIMEOUT)


def endpoint(listener: socket.socket) -> str:
    """Return the address of a socket as a user types it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix://{name}"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


@contextlib.contextmanager
def program(pattern: str, *arguments: str) -> Iterator[str]:
    """Run a server until the end of the block; yield the address that it prints."""
    with subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in read_lines(process.stdout):
                if match := re.search(pattern, line):
                    yield match[1]
                    break
            else:
                raise AssertionError(f"{arguments[0]} ended before it listened")
        finally:
            process.kill()


def connect(
    *arguments: str, data: bytes = b"", code: int | None = 0
) -> subprocess.CompletedProcess[bytes]:
    """Run `superd connect` to its end with some input."""
    done = subprocess.run(
        command("connect", *arguments),
        input=data,
        capture_output=True,
        timeout=EVENT_TIMEOUT,
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert code in (None, done.returncode), done.stderr.decode()
    return done


@contextlib.contextmanager
def connecting(
    *arguments: str, stdin: int | IO[bytes] = subprocess.PIPE, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `superd connect`; kill it at the end of the block."""
    with subprocess.Popen(
        command("connect", *arguments), stdin=stdin, stdout=stdout, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def digest_of(stream: IO[bytes]) -> str:
    """Read to the end and return the digest of it."""
    found = hashlib.sha256()
    while part := os.read(stream.fileno(), READ_SIZE):
        found.update(part)
    return found.hexdigest()
