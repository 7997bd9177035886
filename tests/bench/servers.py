"""The servers to compare: starts them, waits until they serve, and stops them.

Each runs on one core, in its own session and, if possible, its own cgroup. A backend runs on the
load's core. A server counts as started when each of its services has answered a client. It is
stopped by the pids of its own processes only.
Raises BenchError if an address is in use or a server does not start.
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

START_TIMEOUT = 10.0  # seconds
STOP_TIMEOUT = 5.0  # seconds


class Address(NamedTuple):
    """The address of a service."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Server:
    """A program to measure; `no_udp` is the reason why it does not run the udp workload."""

    name: str
    command: tuple[str, ...]
    echo: Address
    daytime: Address | None = None
    cat: Address | None = None  # an echo by a program, if the server runs programs
    no_udp: str = ""
    only: tuple[str, ...] = ()  # the workloads that it runs; () is all
    backend: "Server | None" = None  # what it forwards to
    beside_load: bool = False  # whether it runs on the load's core

    @property
    def log(self) -> Path:
        return CACHE / f"{self.name}.log"


@dataclass(frozen=True)
class Running:
    """A running server; `beside_load` measures its processes on the load's core."""

    server: Server
    process: subprocess.Popen[bytes]
    meter: Meter
    beside_load: Meter | None = None


@contextlib.contextmanager
def running(server: Server, cores: Cores) -> Iterator[Running]:
    """Run a server, after its backend, until the end of the context."""
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
    deadline = time.monotonic() + START_TIMEOUT
    for probe in probes:
        _await(probe, started, deadline)


def _await(probe: Callable[[], None], started: Running, deadline: float) -> None:
    name, log = started.server.name, started.server.log
    while True:
        try:
            return probe()
        except OSError as error:
            if started.process.poll() is not None:
                raise BenchError(f"{name} exited at its start: {last_line(log)}") from error
            if time.monotonic() > deadline:
                raise BenchError(f"{name} does not serve: {error}; {last_line(log)}") from error
        time.sleep(0.01)


def probe_echo(address: Address) -> None:
    """Send one byte to an echo service. Raises OSError if it does not answer."""
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
    """Stop a server with SIGTERM, then kill the processes that are left."""
    started.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        started.process.wait(STOP_TIMEOUT)
    deadline = time.monotonic() + STOP_TIMEOUT
    while (pids := started.meter.pids()) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.process.poll()
        time.sleep(0.02)
    started.process.wait(STOP_TIMEOUT)
    started.meter.close()
