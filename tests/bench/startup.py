"""The time that superd takes from exec to serving.

superd is started several times, on any core. Each time is measured until the line `ready` on its
standard output.
Raises BenchError if superd exits or takes too long without that line.
"""

import subprocess
import threading
import time

from tests.bench.meter import ProcMeter
from tests.bench.servers import START_TIMEOUT, Running, Server, end
from tests.bench.workspace import ROOT, BenchError, last_line

START_COUNT = 5


def ready_times(server: Server) -> list[float]:
    """Start and stop a server several times; return the seconds that each start took."""
    return [_ready_time(server) for _ in range(START_COUNT)]


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
            raise BenchError(f"{server.name} did not become ready: {last_line(server.log)}")
        return time.perf_counter() - began
    finally:
        end(Running(server, process, ProcMeter(process.pid)))


def _says_ready(process: subprocess.Popen[bytes]) -> bool:
    """Read up to the line `ready`; kill the process after a timeout."""
    assert process.stdout
    limit = threading.Timer(START_TIMEOUT, process.kill)
    limit.start()
    try:
        return any(line == b"ready\n" for line in process.stdout)
    finally:
        limit.cancel()
