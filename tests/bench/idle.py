"""The cost of idle connections: memory for each, and delay for a new client.

A server first serves a short workload. Then it gets a number of connections, each of which echoes
once and then stays open. Kernel memory (the sockets themselves) is not counted.
Raises BenchError if no connection could be opened.
"""

import resource
import statistics
import time
from dataclasses import dataclass

from tests.bench.cores import Cores
from tests.bench.load import Workload, load_generator, measure, read_figures
from tests.bench.meter import pss_bytes, wait_until_quiet
from tests.bench.servers import Running, Server, probe_echo, running
from tests.bench.workspace import BenchError

SPARE_DESCRIPTORS = 1_000
OPENING_TIMEOUT = 60.0  # seconds
NEW_CLIENTS = 200
WARM_UP = Workload("warm-up", "rr", connections=50, size=64)


@dataclass(frozen=True)
class IdleFigures:
    """The figures while the connections were open."""

    connections: int
    bytes_each: float
    pss_mb: float
    new_client_us: float
    slowest_new_client_us: float
    errors: int


def measure_idle(server: Server, connections: int, cores: Cores) -> IdleFigures:
    """Start a server, open many connections, and time new clients."""
    with running(server, cores) as target:
        measure(WARM_UP, target, 0.5, cores.load)
        return _hold(target, _affordable(connections), cores.load)


def _hold(target: Running, connections: int, core: int) -> IdleFigures:
    work = Workload("idle", "idle", connections=connections, size=64)
    before = pss_bytes(target.meter)
    with load_generator(work, target.server.echo, OPENING_TIMEOUT, core) as generator:
        assert generator.stdout
        opened = read_figures(generator.stdout.readline())
        if not opened.open:
            raise BenchError(f"{target.server.name} held no idle connection")
        wait_until_quiet(target.meter)
        memory = pss_bytes(target.meter)
        delays = [_delay_of_new_client(target.server) for _ in range(NEW_CLIENTS)]
        generator.terminate()
        final = generator.stdout.readline()  # empty if the first report was the final one
    return IdleFigures(
        connections=opened.open,
        bytes_each=(memory - before) / opened.open,
        pss_mb=memory / 1e6,
        new_client_us=statistics.median(delays) * 1e6,
        slowest_new_client_us=max(delays) * 1e6,
        errors=(read_figures(final) if final else opened).errors,
    )


def _affordable(connections: int) -> int:
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard_limit == resource.RLIM_INFINITY:
        return connections
    return min(connections, hard_limit - SPARE_DESCRIPTORS)


def _delay_of_new_client(server: Server) -> float:
    began = time.perf_counter()
    probe_echo(server.echo)
    return time.perf_counter() - began
