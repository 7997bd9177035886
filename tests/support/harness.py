"""Runs the real daemon for a test and talks to it. A failed test keeps its log and directory.

A test configures services in TOML. The kernel chooses the ports (`tcp://127.0.0.1:0`), and a test
looks them up by service. Nothing here sleeps: every wait is for an event, and has a timeout.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from superd.cli.daemon import ControlConnection
from tests.support import proc

EVENT_TIMEOUT = 15.0  # seconds; a test fails if an event takes longer

Address = tuple[str, int]
Record = dict[str, Any]
T = TypeVar("T")


class Superd:
    """One `superd run` with its own configuration and its own directory."""

    def __init__(
        self,
        directory: Path,
        toml: str,
        *,
        env: dict[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        self.directory = directory
        self.python = python
        self.file = directory / "superd.toml"
        self.toml = toml
        self.env = env
        self.log_file = directory / "log"
        self.own_files = True  # False: superd chooses its pid file, socket and ban file
        self.process: subprocess.Popen[str] | None = None
        self.announced: list[str] = []

    def write(self) -> Path:
        """Write the configuration; [daemon] gets paths in this directory."""
        paths = {"pid-file": "pid", "control-socket": "control", "ban-file": "bans"}
        own = "".join(
            f'{key} = "{self.directory}/{name}"\n'
            for key, name in paths.items()
            if f"{key} =" not in self.toml and self.own_files
        )
        if "record-log" not in self.toml:
            own += f'record-log = "{os.devnull}"\n'  # not in the log that tests read
        head, table, rest = self.toml.partition("[daemon]\n")
        text = f"{head}[daemon]\n{own}{rest}" if table else f"[daemon]\n{own}{self.toml}"
        self.file.write_text(text)
        self.file.chmod(0o600)
        return self.file

    def start(self, *wrapper: str) -> Superd:
        """Start in the foreground, under `wrapper` if given, and wait for `ready`."""
        return self.launch(*wrapper).wait_until_ready()

    def launch(self, *wrapper: str, pass_fds: Collection[int] = ()) -> Superd:
        """Start in the foreground, under `wrapper` if given."""
        self.write()
        with open(self.log_file, "a") as log:
            self.process = subprocess.Popen(
                [*wrapper, *command("run", "-c", str(self.file), python=self.python)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.directory,
                env={**os.environ, **(self.env or {})},
                pass_fds=tuple(pass_fds),
            )
        return self

    def wait_until_ready(self) -> Superd:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in read_lines(self.process.stdout):
            self.announced.append(line)
            if line == "ready":
                return self
        raise AssertionError(f"superd ended with {self.process.wait()}:\n{self.log()}")

    @property
    def pid(self) -> int:
        """The master's pid, even if a wrapper such as strace started it."""
        return int((self.directory / "pid").read_text())

    def address(self, service: str, transport: str = "tcp") -> Address:
        """Return host and port of the service's first address with this transport."""
        return self.addresses(service, transport)[0]

    def addresses(self, service: str, transport: str = "tcp") -> list[Address]:
        """Return host and port of all of the service's addresses with this transport."""
        pattern = rf"{re.escape(service)} +{transport}://(?:\[([^\]]+)\]|([^:\s]+)):(\d+) "
        found = [re.match(pattern, line) for line in self.announced]
        return [(m[1] or m[2], int(m[3])) for m in found if m]

    def connect(self, service: str, source: str | None = None) -> socket.socket:
        """Connect to a service's first tcp address, with a timeout."""
        host, port = self.address(service)
        origin = (source, 0) if source else None
        return socket.create_connection((host, port), timeout=EVENT_TIMEOUT, source_address=origin)

    def status(self) -> Any:
        """Return what `superd status --json` shows."""
        done = self.run("status", "--json")
        return json.loads(done.stdout)

    def answer(self, request: str = "status", **arguments: object) -> Any:
        """Send a request to the control socket; much faster than the command."""
        with ControlConnection(self.directory / "control") as connection:
            return connection.ask(request, **arguments)

    def open_descriptors(self) -> int:
        """Count the master's descriptors, without those of control connections that have ended.

        The master closes these no later than it accepts another, which is not counted either.
        """
        with ControlConnection(self.directory / "control") as connection:
            connection.ask("outline")
            return len(proc.descriptors(self.pid)) - 1

    def counts(self, service: str) -> dict[str, int]:
        """Return the counters of a service."""
        services = self.answer()["services"]
        counts: dict[str, int] = next(s["counts"] for s in services if s["name"] == service)
        return counts

    def wait_until_idle(self, service: str, timeout: float = EVENT_TIMEOUT) -> None:
        """Wait until a service has no active connection."""
        idle = f"{service} to have no active connection"
        until(lambda: self.counts(service)["active"] == 0, idle, timeout)

    def workers(self, pool: str | None = None) -> list[int]:
        """Return the process ids of the workers that are ready."""
        return [
            worker["pid"]
            for worker in self.answer()["workers"]
            if worker["state"] == "ready" and pool in (None, worker["pool"])
        ]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command of superd on this configuration."""
        return superd(arguments[0], "-c", str(self.file), *arguments[1:], env=self.env)

    def log(self) -> str:
        return whole_lines(self.log_file)

    def records(self, service: str | None = None, event: str | None = None) -> list[Record]:
        """Return the connection records, optionally of one service or one event only.

        Needs `record-log = "./records"` and `record-format = "json"` in the configuration.
        """
        records = map(json.loads, whole_lines(self.directory / "records").splitlines())
        wanted = {"service": service, "event": event}
        return [r for r in records if all(v in (None, r[key]) for key, v in wanted.items())]

    def wait_for_log(self, pattern: str, timeout: float = EVENT_TIMEOUT) -> re.Match[str]:
        """Wait until the log has a match of `pattern`."""
        return until(lambda: re.search(pattern, self.log()), f"{pattern!r} in the log", timeout)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = EVENT_TIMEOUT) -> int:
        """Wait until superd exits, and return the exit code."""
        assert self.process is not None
        return self.process.wait(timeout)

    def stop(self) -> int:
        """Stop superd without a drain, if it still runs, and return the exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                self.signal(signal.SIGINT)
        try:
            code = self.process.wait(EVENT_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def make_plugin(directory: Path, name: str, source: str) -> dict[str, str]:
    """Install a plugin without pip: write its module and its metadata.

    Returns the environment in which superd finds the plugins in that directory.
    """
    module = f"superd_{name}"
    info = directory / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (directory / f"{module}.py").write_text(textwrap.dedent(source))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: superd-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[superd]\n{name} = {module}\n")
    path = [str(directory), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)}


def failed_start(
    directory: Path, toml: str, *wrapper: str, env: dict[str, str] | None = None
) -> tuple[int, str]:
    """Start a superd that must fail; return its exit code and its only error line."""
    superd = Superd(directory, toml, env=env)
    done = subprocess.run(
        [*wrapper, *command("run", "-c", str(superd.write()))],
        capture_output=True,
        text=True,
        timeout=EVENT_TIMEOUT,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
        check=False,
    )
    assert "ready" not in done.stdout.splitlines()
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("superd: ")]
    assert len(errors) == 1, done.stderr
    return done.returncode, errors[0]


def command(*arguments: str, python: str = sys.executable) -> list[str]:
    """Return the command line of superd."""
    return [python, "-m", "superd", *arguments]


def superd(
    *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of superd to its end."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        check=False,
    )


def whole_lines(file: Path) -> str:
    """Return the text of a file without an unfinished last line, which may be half written."""
    data = file.read_bytes() if file.exists() else b""
    return data[: data.rfind(b"\n") + 1].decode()


def read_lines(stream: IO[str], timeout: float = EVENT_TIMEOUT) -> Iterator[str]:
    """Yield lines as they arrive, up to the end of the stream; fail after `timeout`."""
    deadline = time.monotonic() + timeout
    pending = ""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([stream], [], [], left)[0]:
            raise AssertionError(f"no line within {timeout} s; read so far: {pending!r}")
        part = os.read(stream.fileno(), 65536).decode()
        if not part:
            return
        *lines, pending = (pending + part).split("\n")
        yield from lines


def until(condition: Callable[[], T | None], what: str, timeout: float = EVENT_TIMEOUT) -> T:
    """Poll until `condition` is true and return its value. For events that are not announced.

    The interval is too short to matter: the test waits for the condition, not for time to pass.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout} s for {what}")
        select.select([], [], [], 0.01)


def receive_all(connection: socket.socket) -> bytes:
    """Read to the end of the stream."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """Send, half-close, and read to the end."""
    with connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return receive_all(connection)


def ask_udp(address: Address, data: bytes, timeout: float = EVENT_TIMEOUT) -> bytes:
    """Send one datagram and return the answer."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout)
        client.connect(address)
        client.send(data)
        return client.recv(65536)


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
