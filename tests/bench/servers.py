"""The servers that are compared, and how one is started, awaited and ended.

Each runs on one core, in a session and (where possible) a cgroup of its own. It counts as started
when each of its services has answered a client; it is ended by the ids of its own processes only.
Raises BenchError when an address is taken or a server does not come up.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.bench.cores import on_core
from tests.bench.meter import Meter, meter_of
from tests.bench.workspace import CACHE, ROOT, BenchError, build, last_line

START_LIMIT = 10.0
STOP_LIMIT = 5.0
CONFIGURATION = """\
[daemon]
workers = 1
pid-file = "{cache}/{name}.pid"
control-socket = "{cache}/{name}.sock"
ban-file = "{cache}/{name}.bans"
record-log = "{cache}/{name}.records"
record-format = "json"

[defaults]
{defaults}

[service.echo]
plugin = "echo"
listen = ["tcp://{echo}", "udp://{echo}"]
model = "{model}"

[service.daytime]
plugin = "daytime"
listen = "tcp://{daytime}"
"""


PROGRAM = """\

[service.cat]
plugin = "exec"
listen = "tcp://{cat}"
options = {{ command = "/bin/cat" }}
"""

# The xinetd and inetd beside it have no limits in force and write nothing of a connection.
WITHOUT_RECORDS = "record = []"
# What an operator would set, with all of it in the path and none of it in the way.
WITH_POLICY = """\
allow = [{networks}]
max-connections = 100000
rate = "1000000/s"
max-per-source = 100000
rate-per-source = "1000000/s"
"""


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
    daytime: Address
    cat: Address | None = None  # an echo by a program, where it runs any
    no_udp: str = ""
    only: tuple[str, ...] = ()  # the works that it takes part in; () is all

    @property
    def log(self) -> Path:
        return CACHE / f"{self.name}.log"


@dataclass(frozen=True)
class Running:
    """A server that serves."""

    server: Server
    process: subprocess.Popen[bytes]
    meter: Meter


def superd() -> Server:
    """Return the server that this benchmark is about, with its configuration written."""
    return _superd("superd", 7100, WITHOUT_RECORDS)


def superd_program() -> Server:
    """Return superd with a program to run for each connection."""
    return _superd("superd-program", 7160, WITHOUT_RECORDS, only=("program",))


def superd_policy() -> Server:
    """Return superd with access lists, limits, and a record of each connection in JSON."""
    policy = WITH_POLICY.format(networks='"127.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"')
    return _superd("superd-policy", 7120, policy, only=POLICY_WORKS)


def superd_networks() -> Server:
    """Return the same with ten thousand networks more."""
    names = [f'"10.{n >> 8}.{n & 255}.0/24"' for n in range(10_000)]
    policy = WITH_POLICY.format(networks=", ".join(['"127.0.0.0/8"', *names]))
    return _superd("superd-networks", 7140, policy, only=POLICY_WORKS)


def superd_fork() -> Server:
    """Return superd with an echo that blocks, in a process for each connection."""
    return _superd("superd-fork", 7180, WITHOUT_RECORDS, only=("connect-echo-close",), model="fork")


def superd_prefork() -> Server:
    """Return the same with processes that were forked before."""
    only = ("connect-echo-close",)
    return _superd("superd-prefork", 7240, WITHOUT_RECORDS, only=only, model="prefork")


POLICY_WORKS = ("connect-echo-close", "daytime")


def _superd(
    name: str, base: int, defaults: str, only: tuple[str, ...] = (), model: str = "loop"
) -> Server:
    CACHE.mkdir(parents=True, exist_ok=True)
    echo, daytime = Address("127.0.0.1", base + 7), Address("127.0.0.1", base + 13)
    cat = Address("127.0.0.1", base + 8) if "program" in only else None
    (CACHE / f"{name}.records").unlink(missing_ok=True)
    configuration = CACHE / f"{name}.toml"
    text = CONFIGURATION + (PROGRAM if cat else "")
    values = {"cache": CACHE, "name": name, "defaults": defaults, "model": model}
    configuration.write_text(text.format(**values, echo=echo, daytime=daytime, cat=cat))
    command = (sys.executable, "-P", "-m", "superd", "run", "-c", str(configuration))
    return Server(name, command, echo, daytime, cat, only=only)


def epoll_server() -> Server:
    """Return the yardstick: what the same services cost in bare C."""
    echo, daytime = Address("127.0.0.1", 7307), Address("127.0.0.1", 7313)
    program = build("epoll_server")
    command = (str(program), echo.host, str(echo.port), str(daytime.port))
    return Server("epoll-c", command, echo, daytime)


@contextlib.contextmanager
def running(server: Server, core: int) -> Iterator[Running]:
    """Run a server on one core for as long as the context lasts."""
    for address in (server.echo, server.daytime):
        if _is_taken(address):
            raise BenchError(f"{server.name}: {address} is in use by another program")
    started = _start(server, core)
    try:
        _await_services(started)
        yield started
    finally:
        end(started)


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
    probes = [lambda: probe_echo(server.echo), lambda: _probe_daytime(server.daytime)]
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
