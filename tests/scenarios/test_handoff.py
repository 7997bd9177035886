"""Programs that get the listening or datagram socket itself (`wait = true`): how many run, and when
superd ends them.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import connect_unix
from tests.support.harness import (
    EVENT_TIMEOUT,
    Superd,
    ask_udp,
    is_alive,
    receive_all,
    until,
)

# Each answers every client with its process ID, and never ends by itself.
ACCEPTS = r"use Socket; while (accept(C, STDIN)) { syswrite C, $$; close C }"
RECEIVES = r"while (defined($p = recv STDIN, $d, 65536, 0)) { send STDOUT, $$, 0, $p }"

TOML = """
[daemon]
record-log = "{directory}/records"
record-format = "json"

[defaults]
plugin = "exec"
wait = true
user = "root"

[service.datagrams]
listen = ["udp://127.0.0.1:0", "udp://[::1]:0", "unixgram://{directory}/datagrams"]
options = { command = ["perl", "-e", '{receives}'] }

[service.streams]
listen = ["tcp://127.0.0.1:0", "tcp://[::1]:0", "unix://{directory}/streams"]
options = { command = ["perl", "-e", '{accepts}'] }
""".replace("{receives}", RECEIVES).replace("{accepts}", ACCEPTS)

pytestmark = pytest.mark.tool("perl")


def pid_from(client: socket.socket) -> int:
    """Return the process ID that a program answers a client with."""
    with client:
        client.settimeout(EVENT_TIMEOUT)
        return int(receive_all(client))


def program(served: Superd, service: str) -> int:
    """Return the process ID of the program that serves the service's first tcp address."""
    return pid_from(served.connect(service))


def toml_in(directory: Path, workers: int = 1) -> str:
    toml = TOML.replace("{directory}", str(directory))
    return toml.replace("[daemon]\n", f"[daemon]\nworkers = {workers}\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_each_address_of_a_service_has_a_program_of_its_own(
    start_superd: Start, tmp_path: Path, workers: int
) -> None:
    served = start_superd(toml_in(tmp_path, workers))
    for _ in range(3):
        hosts = served.addresses("streams")
        pids = [pid_from(socket.create_connection(host, EVENT_TIMEOUT)) for host in hosts]
        pids.append(pid_from(connect_unix(tmp_path / "streams")))
        pids += [int(ask_udp(host, b"x")) for host in served.addresses("datagrams", "udp")]
        assert len(set(pids)) == len(pids)
    assert served.counts("streams")["accepted"] == 3
    assert served.counts("datagrams")["datagrams"] == 2


def test_of_several_workers_one_at_a_time_starts_a_program_for_an_address(
    start_superd: Start, tmp_path: Path
) -> None:
    served = start_superd(toml_in(tmp_path, workers=4))
    with ThreadPoolExecutor(16) as clients:
        pids = set(clients.map(lambda _: program(served, "streams"), range(64)))
    assert len(pids) == 1
    assert served.counts("streams")["accepted"] == 1


def test_max_connections_limits_the_programs_of_a_service(start_superd: Start) -> None:
    served = start_superd(
        f"""
        [service.two]
        plugin = "exec"
        wait = true
        listen = ["tcp://127.0.0.1:0", "tcp://127.0.0.1:0", "tcp://127.0.0.1:0"]
        max-connections = 2
        options = {{ command = ["perl", "-e", '{ACCEPTS}'] }}
        """
    )
    first, second, third = served.addresses("two")
    pids = [pid_from(socket.create_connection(host, EVENT_TIMEOUT)) for host in (first, second)]
    with socket.create_connection(third, EVENT_TIMEOUT) as client:
        row = served.answer("connections", service="two")["connections"][0]
        assert served.counts("two")["active"] == 2
        assert served.answer("kill", id=row["id"]) == {}
        pids.append(pid_from(client))  # accepted once a slot was free
    assert len(set(pids)) == 3
    until(lambda: sum(map(is_alive, pids)) == 2, "the end of the program that was killed")
