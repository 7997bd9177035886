"""What a server is that is compared, and how one is started, awaited and ended.

Each runs on one core, in a session and (where possible) a cgroup of its own; what it forwards to,
if it does, runs on the load's core. It counts as started when each of its services has answered a
client; it is ended by the ids of its own processes only.
Raises BenchError when an address is taken or a server does not come up.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.bench.cores import Cores, on_core
from tests.bench.meter import Meter, meter_of
from tests.bench.workspace import CACHE, ROOT, BenchError, last_line

START_LIMIT = 10.0
STOP_LIMIT = 5.0


class Address(NamedTuple):
    """Where a service listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Server:
    """A program to measure; `no_udp` says why it takes no part in the work with datagrams."""

    name: str
    command: tuple[str, ...]
    echo: Address
    daytime: Address | None = None
    cat: Address | None = None  # an echo by a program, where it runs any
    no_udp: str = ""
    only: tuple[str, ...] = ()  # the works that it takes part in; () is all
    backend: "Server | None" = None  # what it forwards to
    beside_load: bool = False  # whether it runs on the load's core

    @property
    def log(self) -> Path:
        return CACHE / f"{self.name}.log"


@dataclass(frozen=True)
class Running:
    """A server that serves; `beside_load` meters what works for it on the load's core."""

    server: Server
    process: subprocess.Popen[bytes]
    meter: Meter
    beside_load: Meter | None = None


@contextlib.contextmanager
def running(server: Server, cores: Cores) -> Iterator[Running]:
    """Run a server, after its backend, for as long as the context lasts."""
    for address in (server.echo, server.daytime):
        if address and _is_taken(address):
            raise BenchError(f"{server.name}: {address} is in use by another program")
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(running(server.backend, cores)) if server.backend else None
        started = _start(server, cores.load if server.beside_load else cores.server)
        stack.callback(end, started)
        _await_services(started)
        beside = started if server.beside_load else backend
        yield dataclasses.replace(started, beside_load=beside.meter if beside else None)


def _is_taken(address: Address) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
        return True
    return False


def _start(server: Server, core: int) -> Running:
    try:
        with server.log.open("wb") as log, on_core(core):
            process = subprocess.Popen(
                server.command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise BenchError(f"{server.name}: {error}") from error
    return Running(server, process, meter_of(process.pid))


def _await_services(started: Running) -> None:
    server = started.server
    probes = [lambda: probe_echo(server.echo)]
    if (daytime := server.daytime) is not None:
        probes.append(lambda: _probe_daytime(daytime))
    if (cat := server.cat) is not None:
        probes.append(lambda: probe_echo(cat))
    if not server.no_udp:
        probes.append(lambda: _probe_datagram(server.echo))
    deadline = time.monotonic() + START_LIMIT
    for probe in probes:
        _await(probe, started, deadline)


def _await(probe: Callable[[], None], started: Running, deadline: float) -> None:
    name, log = started.server.name, started.server.log
    while True:
        try:
            return probe()
        except OSError as error:
            if started.process.poll() is not None:
                raise BenchError(f"{name} ended at its start: {last_line(log)}") from error
            if time.monotonic() > deadline:
                raise BenchError(f"{name} does not serve: {error}; {last_line(log)}") from error
        time.sleep(0.01)


def probe_echo(address: Address) -> None:
    """Be a client of an echo service once; OSError if it does not answer."""
    with socket.create_connection(address, timeout=1) as client:
        client.sendall(b"x")
        _expect_answer(client)


def _probe_daytime(address: Address) -> None:
    with socket.create_connection(address, timeout=1) as client:
        _expect_answer(client)


def _probe_datagram(address: Address) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.2)
        client.connect(address)
        client.send(b"x")
        _expect_answer(client)


def _expect_answer(client: socket.socket) -> None:
    if not client.recv(100):
        raise ConnectionError("closed without an answer")


def end(started: Running) -> None:
    """End a server as an operator would; what is left of it after that is killed."""
    started.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        started.process.wait(STOP_LIMIT)
    deadline = time.monotonic() + STOP_LIMIT
    while (pids := started.meter.pids()) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.process.poll()
        time.sleep(0.02)
    started.process.wait(STOP_LIMIT)
    started.meter.close()
