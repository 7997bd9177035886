"""The workloads: what clients do while a server is measured.

Each workload is one call of the load generator, on a core that the server does not use. The
server's memory is read while it runs, the server's CPU time before and after.
Raises BenchError if the load generator fails; errors that it counts are figures.
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
EXIT_GRACE = 15.0  # seconds for the load generator to exit after its time


@dataclass(frozen=True)
class Workload:
    """A way to load a server."""

    name: str
    mode: Mode
    connections: int
    size: int
    service: Literal["echo", "daytime", "cat"] = "echo"

    def why_not(self, server: Server) -> str:
        """Return why a server cannot run this workload, or the empty string."""
        if server.only and self.name not in server.only:
            return f"it is only for {' and '.join(server.only)}"
        if self.service == "daytime" and server.daytime is None:
            return "it has no daytime service"
        if self.service == "cat" and server.cat is None:
            return "it runs no programs"
        return server.no_udp if self.mode == "udp" else ""


@dataclass(frozen=True)
class Figures:
    """What the load generator reports; `ops` counts the warm-up too, `rate` does not.

    `busy` is the share of its time in which it used its core.
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
    """One measurement of one workload on one server.

    `load_percent` is the share of the load's core that was used, including a backend beside it.
    """

    rate: float
    p50_us: float
    p99_us: float
    cpu_us: float
    mbps: float
    errors: int
    pss_mb: float
    load_percent: float


def measure(work: Workload, target: Running, secs: float, core: int) -> Sample:
    """Load a server for some seconds."""
    cpu_before = target.meter.cpu_seconds()
    beside_before = target.beside_load.cpu_seconds() if target.beside_load else 0.0
    address = getattr(target.server, work.service)
    with load_generator(work, address, secs, core) as generator:
        time.sleep(secs / 2)
        memory = pss_bytes(target.meter)
        figures = read_figures(_output(generator, secs + EXIT_GRACE))
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
    work: Workload, address: Address, secs: float, core: int
) -> Iterator[subprocess.Popen[str]]:
    """Run the load generator on a core for `secs` seconds; kill it at the end of the context."""
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
        raise BenchError("the load generator does not exit") from error


def read_figures(line: str) -> Figures:
    """Parse a line of the load generator."""
    try:
        report = json.loads(line)
        return Figures(**{field.name: report[field.name] for field in dataclasses.fields(Figures)})
    except (ValueError, KeyError) as error:
        raise BenchError(f"expected figures from the load generator, got {line!r}") from error


def median(samples: Sequence[Sample]) -> Sample:
    """Return the median of each figure; errors are added up."""
    rows = [dataclasses.asdict(sample) for sample in samples]
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return Sample(**middle | {"errors": sum(sample.errors for sample in samples)})
