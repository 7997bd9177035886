"""Targets that a test plays itself: it holds their sockets, and accepts when it wants to.

Runs in the test's process; no threads. A target over tcp is bound from the start, so that nobody
else gets its port, also while it refuses.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

from tests.support.harness import EVENT_TIMEOUT, Address, Record, Superd, until

RECORDS = '[daemon]\nrecord-log = "{directory}/records"\nrecord-format = "json"\n'


class Place:
    """One target over tcp; it listens until it is told to refuse."""

    def __init__(self) -> None:
        self._bind(("127.0.0.1", 0))
        self.address = self.sock.getsockname()
        self.serve()

    def _bind(self, address: Address) -> None:
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(address)
        self.serves = False

    def __str__(self) -> str:
        return "tcp://{}:{}".format(*self.address)

    def serve(self) -> None:
        self.sock.settimeout(EVENT_TIMEOUT)
        self.sock.listen()
        self.serves = True

    def refuse(self) -> None:
        """Listen no more."""
        self.sock.close()
        self._bind(self.address)

    def close(self) -> None:
        self.sock.close()

    def accept(self) -> socket.socket:
        taken, _ = self.sock.accept()
        taken.settimeout(EVENT_TIMEOUT)
        return taken


class Mailbox(Place):
    """One target over udp; `refuse` leaves its port to nobody else who asks for any."""

    def _bind(self, address: Address) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.settimeout(EVENT_TIMEOUT)
        self.sock.bind(("127.0.0.53", address[1]))
        self.serves = True

    def __str__(self) -> str:
        return "udp://{}:{}".format(*self.address)

    def serve(self) -> None:
        if not self.serves:
            self._bind(self.address)

    def refuse(self) -> None:
        self.sock.close()
        self.serves = False

    def receive(self) -> tuple[bytes, Address]:
        data, source = self.sock.recvfrom(1 << 17)
        return data, source

    def answer(self, data: bytes, source: Address) -> None:
        self.sock.sendto(data, source)


P = TypeVar("P", bound=Place)


class Front(Generic[P]):
    """A service that forwards, and its targets."""

    def __init__(self, superd: Superd, service: str, places: list[P]) -> None:
        self.superd = superd
        self.service = service
        self.places = places

    def connect(self, source: str | None = None) -> socket.socket:
        return self.superd.connect(self.service, source)

    def asked(self) -> int:
        """Return the number of the target that somebody has come to."""
        ready, _, _ = select.select(
            [p.sock for p in self.places if p.serves], [], [], EVENT_TIMEOUT
        )
        assert ready, "nobody came"
        return next(n for n, place in enumerate(self.places) if place.sock is ready[0])

    @contextlib.contextmanager
    def visit(self, source: str | None = None) -> Iterator[int]:
        """Be a client that is served; give the number of its target, which closes in the end."""
        with self.connect(source) as client:
            number = self.asked()
            with self.places[number].accept() as taken:
                taken.sendall(b"hello")
                assert client.recv(100) == b"hello"
                yield number
            assert client.recv(100) == b""
        self.superd.wait_until_idle(self.service)

    def visits(self, number: int, source: str | None = None) -> list[int]:
        """Come so many times, one after the other; return who was asked."""
        found = []
        for _ in range(number):
            with self.visit(source) as which:
                found.append(which)
        return found

    def lines(self, text: str, number: int = 1) -> int:
        """Return how many lines of the log about this service have a text, once it is so many."""

        def found() -> int:
            lines = self.superd.log().splitlines()
            return sum(text in line and f"service={self.service}" in line for line in lines)

        if number:
            until(lambda: found() >= number, f"{number} lines {text!r}")
        return found()

    def events(self, kind: str, number: int) -> list[Record]:
        """Wait for so many events of a kind in the record, and return them."""

        def found() -> list[Record] | None:
            told = self.superd.records(self.service, kind)
            return told if len(told) >= number else None

        return until(found, f"{number} events {kind} of {self.service}")


@contextlib.contextmanager
def fronts(
    directory: Path,
    services: dict[str, str],
    kind: type[P],
    *,
    listen: str = "tcp://127.0.0.1:0",
    daemon: str = "",
) -> Iterator[dict[str, Front[P]]]:
    """Run services with these options: `$0` stands for a target, and `$to` for three.

    What follows the first line is the entry's own. `{directory}` is superd's.
    """
    with contextlib.ExitStack() as stack:
        toml = RECORDS + daemon
        made = {name: [kind() for _ in range(3)] for name in services}
        for places in made.values():
            for place in places:
                stack.callback(place.close)
        for name, text in services.items():
            options, _, rest = text.partition("\n")
            options = options.replace("$to", 'to = ["$0", "$1", "$2"]')
            for number, place in enumerate(made[name]):
                options = options.replace(f"${number}", str(place))
            where = "" if "listen" in rest else f'listen = "{listen}"\n'
            toml += f'[service.{name}]\nplugin = "forward"\n{where}{rest}\n'
            toml += f"options = {{ {options} }}\n"
        superd = Superd(directory, toml.replace("{directory}", str(directory)))
        stack.callback(lambda: print(superd.log()))
        stack.callback(superd.stop)
        superd.start()
        yield {name: Front(superd, name, made[name]) for name in services}
