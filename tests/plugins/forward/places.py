"""Targets whose sockets the test holds, so that it decides when to accept and when to refuse.

Runs in the test's process; no threads. A tcp target stays bound while it refuses, so that no other
process gets its port.
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


class TcpTarget:
    """A tcp target; it listens until `refuse` is called."""

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
        """Stop listening."""
        self.sock.close()
        self._bind(self.address)

    def close(self) -> None:
        self.sock.close()

    def accept(self) -> socket.socket:
        sock, _ = self.sock.accept()
        sock.settimeout(EVENT_TIMEOUT)
        return sock


class UdpTarget(TcpTarget):
    """A udp target. Its address is used by no other process, so `refuse` can close the socket."""

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


P = TypeVar("P", bound=TcpTarget)


class Front(Generic[P]):
    """A service that forwards, and its targets."""

    def __init__(self, superd: Superd, service: str, targets: list[P]) -> None:
        self.superd = superd
        self.service = service
        self.targets = targets

    def connect(self, source: str | None = None) -> socket.socket:
        return self.superd.connect(self.service, source)

    def next_target(self) -> int:
        """Wait for a client at any target; return the number of the target."""
        ready, _, _ = select.select(
            [p.sock for p in self.targets if p.serves], [], [], EVENT_TIMEOUT
        )
        assert ready, "no target got a client"
        return next(n for n, target in enumerate(self.targets) if target.sock is ready[0])

    @contextlib.contextmanager
    def serve_client(self, source: str | None = None) -> Iterator[int]:
        """Connect a client that is served; yield the number of its target, which then closes."""
        with self.connect(source) as client:
            number = self.next_target()
            with self.targets[number].accept() as server:
                server.sendall(b"hello")
                assert client.recv(100) == b"hello"
                yield number
            assert client.recv(100) == b""
        self.superd.wait_until_idle(self.service)

    def serve_clients(self, number: int, source: str | None = None) -> list[int]:
        """Connect `number` clients, one after the other; return the numbers of their targets."""
        found = []
        for _ in range(number):
            with self.serve_client(source) as which:
                found.append(which)
        return found

    def lines(self, text: str, number: int = 1) -> int:
        """Wait for `number` log lines of this service with a text; return how many there are."""

        def found() -> int:
            lines = self.superd.log().splitlines()
            return sum(text in line and f"service={self.service}" in line for line in lines)

        if number:
            until(lambda: found() >= number, f"{number} lines {text!r}")
        return found()

    def events(self, kind: str, number: int) -> list[Record]:
        """Wait for `number` events of a kind in the record, and return them."""

        def found() -> list[Record] | None:
            records = self.superd.records(self.service, kind)
            return records if len(records) >= number else None

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
    """Run services with these options; `$0` is replaced by a target, `$to` by the key with three.

    Lines after the first are keys of the entry. `{directory}` is superd's directory.
    """
    with contextlib.ExitStack() as stack:
        toml = RECORDS + daemon
        made = {name: [kind() for _ in range(3)] for name in services}
        for targets in made.values():
            for target in targets:
                stack.callback(target.close)
        for name, text in services.items():
            options, _, rest = text.partition("\n")
            options = options.replace("$to", 'to = ["$0", "$1", "$2"]')
            for number, target in enumerate(made[name]):
                options = options.replace(f"${number}", str(target))
            where = "" if "listen" in rest else f'listen = "{listen}"\n'
            toml += f'[service.{name}]\nplugin = "forward"\n{where}{rest}\n'
            toml += f"options = {{ {options} }}\n"
        superd = Superd(directory, toml.replace("{directory}", str(directory)))
        stack.callback(lambda: print(superd.log()))
        stack.callback(superd.stop)
        superd.start()
        yield {name: Front(superd, name, made[name]) for name in services}
