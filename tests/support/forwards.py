"""Forwards to real servers: starts superd and the servers, and reads the records of superd.

Runs in the test's process. Servers listen on loopback only, and are stopped by pid.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conftest import Start
from tests.support.harness import EVENT_TIMEOUT, Record, Superd, until

FORWARD = """
[daemon]
record-log = "./records"
record-format = "json"

[service.forward]
plugin = "forward"
listen = [{listen}]
record = "closed"
{keys}
options = {{ to = "{to}", {more} }}
"""
TCP = "tcp://127.0.0.1:0"
LISTEN_STATE = "0A"  # the state TCP_LISTEN in /proc/net/tcp


def forward(start: Start, to: str, *listen: str, more: str = "", keys: str = "") -> Superd:
    """Start superd with a forward to a target; `more` are options, `keys` lines of the entry."""
    addresses = ", ".join(f'"{address}"' for address in listen or (TCP,))
    return start(FORWARD.format(listen=addresses, to=to, more=more, keys=keys))


def closed_records(served: Superd, number: int) -> list[Record]:
    """Wait until `number` connections, and no more, have been recorded; return their records."""

    def found() -> list[Record] | None:
        events = served.records()
        return events if len(events) >= number else None

    events = until(found, f"{number} records")
    assert len(events) == number
    counts = served.counts("forward")
    assert (counts["active"], counts["errors"]) == (0, 0)
    return events


def only_record(served: Superd) -> Record:
    """Wait for the record of the only connection, and return it."""
    return closed_records(served, 1)[0]


def is_bound(port: int, protocol: str = "tcp") -> bool:
    """Return whether a process listens on a port, without a connection that would be counted."""
    for table in (f"/proc/net/{protocol}", f"/proc/net/{protocol}6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if local.endswith(f":{port:04X}") and (protocol == "udp" or state == LISTEN_STATE):
                return True
    return False


@contextlib.contextmanager
def running(
    *command: str | Path,
    port: int,
    protocol: str = "tcp",
    user: int | None = None,
    **more: Any,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server: wait until it listens on `port`, and stop it at the end of the block."""
    more = {"stdin": subprocess.DEVNULL, **more}
    if user is not None:
        more |= {"user": user, "group": user, "extra_groups": []}
    with subprocess.Popen(command, **more) as process:
        try:
            until(lambda: is_bound(port, protocol) or process.poll() is not None, "a server")
            assert process.poll() is None, f"{command[0]} has ended"
            yield process
        finally:
            process.terminate()
            try:
                process.wait(EVENT_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
