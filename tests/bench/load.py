"""The works: what clients do to a server while it is measured.

Each work is one call of the load generator on a core that the server does not use. While it
runs the server's memory is read, around it the server's CPU time.
Raises BenchError when the load generator breaks; errors that it counts are figures.
"""

import contextlib
import dataclasses
import json
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.bench.cores import on_core
from tests.bench.meter import pss_bytes, wait_until_quiet
from tests.bench.servers import Address, Running, Server
from tests.bench.workspace import BenchError, build

Mode = Literal["rr", "crr", "bulk", "udp", "idle"]
GRACE = 15.0


@dataclass(frozen=True)
class Work:
    """A way to load a server."""

    name: str
    mode: Mode
    connections: int
    size: int
    service: Literal["echo", "daytime", "cat"] = "echo"

    def why_not(self, server: Server) -> str:
        """Say why a server takes no part in this work, or nothing."""
        if server.only and self.name not in server.only:
            return f"it is there for {' and '.join(server.only)}"
        if self.service == "daytime" and server.daytime is None:
            return "it does not tell the time"
        if self.service == "cat" and server.cat is None:
            return "it runs no programs"
        return server.no_udp if self.mode == "udp" else ""


@dataclass(frozen=True)
class Figures:
    """What the load generator reports; `ops` counts the warm-up too, `rate` does not.

    `busy` is the part of its time for which it used its core.
    """

    rate: float
    mbps: float
    p50_us: float
    p99_us: float
    errors: int
    open: int
    ops: int
    busy: float


@dataclass(frozen=True)
class Sample:
    """One measurement of one work on one server.

    `load_percent` is the part of its core that the load used, with what runs beside it.
    """

    rate: float
    p50_us: float
    p99_us: float
    cpu_us: float
    mbps: float
    errors: int
    pss_mb: float
    load_percent: float


def measure(work: Work, target: Running, secs: float, core: int) -> Sample:
    """Load a server for some seconds."""
    cpu_before = target.meter.cpu_seconds()
    beside_before = target.beside_load.cpu_seconds() if target.beside_load else 0.0
    address = getattr(target.server, work.service)
    with load_generator(work, address, secs, core) as generator:
        time.sleep(secs / 2)
        memory = pss_bytes(target.meter)
        figures = read_figures(_output(generator, secs + GRACE))
    beside = target.beside_load.cpu_seconds() - beside_before if target.beside_load else 0.0
    wait_until_quiet(target.meter)
    cpu = target.meter.cpu_seconds() - cpu_before
    return Sample(
        rate=figures.rate,
        p50_us=figures.p50_us,
        p99_us=figures.p99_us,
        cpu_us=cpu / figures.ops * 1e6 if figures.ops else 0.0,
        mbps=figures.mbps,
        errors=figures.errors,
        pss_mb=memory / 1e6,
        load_percent=(figures.busy + beside / secs) * 100,
    )


@contextlib.contextmanager
def load_generator(
    work: Work, address: Address, secs: float, core: int
) -> Iterator[subprocess.Popen[str]]:
    """Run the load generator on a core: for some seconds, at most while the context lasts."""
    target = (work.mode, address.host, str(address.port))
    amount = ("-c", str(work.connections), "-s", str(work.size), "-t", str(secs))
    command = (str(build("loadgen")), *target, *amount)
    with on_core(core):
        generator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with generator:
        try:
            yield generator
        finally:
            generator.kill()


def _output(generator: subprocess.Popen[str], limit: float) -> str:
    try:
        return generator.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired as error:
        raise BenchError("the load generator does not end") from error


def read_figures(line: str) -> Figures:
    """Read a line of the load generator."""
    try:
        report = json.loads(line)
        return Figures(**{field.name: report[field.name] for field in dataclasses.fields(Figures)})
    except (ValueError, KeyError) as error:
        raise BenchError(f"the load generator gave no figures, but {line!r}") from error


def median(samples: Sequence[Sample]) -> Sample:
    """Return the median of each figure; errors are added up."""
    rows = [dataclasses.asdict(sample) for sample in samples]
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return Sample(**middle | {"errors": sum(sample.errors for sample in samples)})
