"""Load in the background of a test, and the failures that its clients saw.

Runs in the test's process, in one thread for each load.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tests.support.harness import EVENT_TIMEOUT, exchange, until

CHUNK_BYTES = 4096
PAUSE_SECONDS = 0.005  # a load without pauses would starve the superd under test


@dataclass
class Load:
    """Clients that connect, get an answer and close, one after the other; counts their failures."""

    ask: Callable[[], bytes]
    is_right: Callable[[bytes], bool] = b"hello".__eq__
    served: int = 0
    failures: list[str] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                answer = self.ask()
                if not self.is_right(answer):
                    self.failures.append(f"answered {answer!r}")
            except OSError as error:
                self.failures.append(str(error))
            self.served += 1
            stop.wait(PAUSE_SECONDS)


def echo_load(connect: Callable[[], socket.socket]) -> Load:
    """Return a load of clients of an echo service."""
    return Load(lambda: exchange(connect(), b"hello"))


@dataclass
class Stream:
    """One long connection: numbered chunks, each echoed before the next is sent."""

    connection: socket.socket
    sent: int = 0
    failures: list[str] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        try:
            with self.connection:
                while not stop.is_set():
                    chunk = self.sent.to_bytes(8, "big") * (CHUNK_BYTES // 8)
                    self.connection.sendall(chunk)
                    found = b""
                    while len(found) < CHUNK_BYTES and (part := self.connection.recv(CHUNK_BYTES)):
                        found += part
                    assert found == chunk
                    self.sent += 1
                    stop.wait(0.02)
        except (OSError, AssertionError) as error:
            self.failures.append(f"after {self.sent} chunks: {error!r}")


def wait_for_answers(loads: Iterable[Load], number: int = 1) -> None:
    """Wait until each load has served `number` more clients."""
    for load in loads:
        goal = load.served + number
        until(lambda load=load, goal=goal: load.served >= goal, "some more answers")  # type: ignore[misc]


@contextmanager
def under_load(*loads: Load | Stream) -> Iterator[None]:
    """Run loads until the end of the block."""
    stop = threading.Event()
    threads = [threading.Thread(target=load.run, args=(stop,)) for load in loads]
    with ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join, EVENT_TIMEOUT)
        stack.callback(stop.set)
        yield
