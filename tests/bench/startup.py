"""How long superd takes from exec to serving.

It is started several times, on no core in particular, and each time is taken until the line
`ready` on its standard output.
Raises BenchError when it ends or takes far too long without that line.
"""

import subprocess
import threading
import time

from tests.bench.meter import ProcMeter
from tests.bench.servers import START_LIMIT, Running, Server, end
from tests.bench.workspace import ROOT, BenchError, last_line

STARTS = 5


def ready_times(server: Server) -> list[float]:
    """Start and end a server several times; return the seconds that each start took."""
    return [_ready_time(server) for _ in range(STARTS)]


def _ready_time(server: Server) -> float:
    with server.log.open("wb") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            server.command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    try:
        if not _says_ready(process):
            raise BenchError(f"{server.name} never was ready: {last_line(server.log)}")
        return time.perf_counter() - began
    finally:
        end(Running(server, process, ProcMeter(process.pid)))


def _says_ready(process: subprocess.Popen[bytes]) -> bool:
    """Read up to the line `ready`; a process that does not get there is killed."""
    assert process.stdout
    limit = threading.Timer(START_LIMIT, process.kill)
    limit.start()
    try:
        return any(line == b"ready\n" for line in process.stdout)
    finally:
        limit.cancel()
