"""Servers under load, each from its own benchmark program."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Start
from tests.support.forwards import closed_records, forward, running
from tests.support.harness import Superd, until
from tests.support.ports import free_port, free_ports
from tests.support.programs import (
    NOBODY,
    output,
    output_for_input,
    public_directory,
    random_bytes,
    run,
)

pytestmark = pytest.mark.slow

# iperf3: one connection for control, others for data, or datagrams to the same port

SIZE = 20_000_000
MODES = {"to": (), "from": ("--reverse",), "both": ("--bidir",), "many": ("--parallel", "4")}
CONTROL = 100_000  # bytes; the limit of the control connection of a test


@pytest.fixture
def iperf(start_superd: Start) -> Iterator[tuple[Superd, tuple[str, ...]]]:
    """A forward to a server, with the same port for connections and datagrams, and its client."""
    port, own = free_ports(2)
    server = ["iperf3", "--server", "--bind", "127.0.0.1", "--port", str(port)]
    with running(*server, port=port):
        listen = (f"tcp://127.0.0.1:{own}", f"udp://127.0.0.1:{own}")
        served = forward(start_superd, f"127.0.0.1:{port}", *listen)
        yield served, ("iperf3", "--json", "--client", "127.0.0.1", "--port", str(own))


@pytest.mark.tool("iperf3")
def test_iperf3_measures_connections_in_all_directions(
    iperf: tuple[Superd, tuple[str, ...]],
) -> None:
    served, client = iperf
    before = 0
    for mode, arguments in MODES.items():
        end = json.loads(output(*client, *arguments, "--bytes", str(SIZE)))["end"]
        number = before + 1 + len(end["streams"])
        events = closed_records(served, number)[before:]
        before = number
        direction = "out" if mode == "from" else "in"
        carried = sum(event[direction] for event in events)
        # the receiver stops counting when the sender reports the end
        assert 0 < end["sum_received"]["bytes"] <= carried
        assert carried <= end["sum_sent"]["bytes"] + CONTROL
        if mode == "both":
            assert sum(e["out"] for e in events) >= end["sum_received_bidir_reverse"]["bytes"] > 0


@pytest.mark.tool("iperf3")
def test_iperf3_measures_datagrams_in_both_directions(
    iperf: tuple[Superd, tuple[str, ...]],
) -> None:
    served, client = iperf
    for direction in ((), ("--reverse",)):
        arguments = ("--udp", "--length", "1000", "--bitrate", "20M", "--bytes", "500K", *direction)
        total = json.loads(output(*client, *arguments))["end"]["sum"]
        assert total["packets"] > 500
        assert total["lost_percent"] < 20  # loss is allowed, and rare here
    assert served.counts("forward")["datagrams"] > 400


# dnsmasq


def dig(served: Superd, transport: str, *question: str) -> list[str]:
    host, port = served.address("forward", transport)
    command = ["dig", f"@{host}", "-p", str(port), "+short", "+tries=1", "+timeout=10", *question]
    return sorted(output(*command).decode().splitlines())


@pytest.mark.tool("dnsmasq", "dig")
def test_dig_asks_a_name_server_over_udp_and_tcp(start_superd: Start) -> None:
    port, own = free_ports(2)
    many = sorted(f"192.0.2.{number}" for number in range(1, 101))
    command = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="]
    command += [f"--port={port}", "--listen-address=127.0.0.1", "--bind-interfaces", "--no-resolv"]
    command += ["--no-hosts", "--user=", "--address=/one.example/192.0.2.1", "--log-facility=-"]
    command += ["--txt-record=text.example,superd"]
    command += [f"--host-record=many.example,{address}" for address in many]
    with running(*command, port=port, protocol="udp"):
        served = forward(
            start_superd, f"127.0.0.1:{port}", f"tcp://127.0.0.1:{own}", f"udp://127.0.0.1:{own}",
            more="datagram-replies = 1",
        )  # fmt: skip
        for transport, options in (("udp", ()), ("tcp", ("+tcp",))):
            assert dig(served, transport, *options, "a.one.example") == ["192.0.2.1"]
            assert dig(served, transport, *options, "text.example", "TXT") == ['"superd"']
            assert dig(served, transport, *options, "many.example") == many
        # each query over udp is a source of its own; a long answer is queried again over tcp
        events = closed_records(served, 7)
    assert {event["target"] for event in events} == {
        f"{transport}://127.0.0.1:{port}" for transport in ("tcp", "udp")
    }
    by_datagrams = [event for event in events if event["local"].startswith("udp")]
    assert len(by_datagrams) == 3
    assert {event["end"] for event in by_datagrams} == {"server"}
    assert all(0 < event["in"] < event["out"] for event in events)


# redis-server

KINDS = ("SET", "GET", "LPUSH", "LPOP")
REQUESTS = 5000


@pytest.mark.tool("redis-server", "redis-cli", "redis-benchmark")
def test_redis_under_load_loses_nothing(start_superd: Start, tmp_path: Path) -> None:
    port = free_port()
    server = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    server += ["--appendonly", "no", "--dir", str(tmp_path), "--daemonize", "no"]
    with running(*server, port=port, stdout=subprocess.DEVNULL):
        served = forward(start_superd, f"tcp://127.0.0.1:{port}")
        host, own = served.address("forward")
        place = ["-h", host, "-p", str(own)]
        load = ["-n", str(REQUESTS), "-c", "50", "-P", "8", "-r", "1000", "-d", "100", "--csv"]
        printed = output("redis-benchmark", *place, *load, "-t", ",".join(KINDS).lower())
        rows = list(csv.DictReader(printed.decode().splitlines()))
        assert [row["test"] for row in rows] == list(KINDS)
        assert all(float(row["rps"]) > 0 for row in rows)
        info = output("redis-cli", *place, "info", "commandstats").decode()
        for kind in KINDS:
            assert re.search(rf"cmdstat_{kind.lower()}:calls={REQUESTS},", info), info
        data = random_bytes(1_000_000).hex().encode()
        assert output_for_input(data, "redis-cli", *place, "-x", "set", "large") == b"OK\n"
        assert output("redis-cli", *place, "--raw", "get", "large").strip() == data
        accepted = served.counts("forward")["accepted"]
        events = closed_records(served, accepted)
    assert accepted >= 4 * 50
    assert {event["target"] for event in events} == {f"tcp://127.0.0.1:{port}"}
    assert {event["end"] for event in events} == {"client"}


# PostgreSQL


def postgres_programs() -> Path | None:
    """Return the directory of the newest version's programs, which Debian has outside the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


CLIENTS, TRANSACTIONS = 8, 25
BALANCED = """
select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
   and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)
   and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history),
   (select count(*) from pgbench_history)
"""


@pytest.mark.root
@pytest.mark.tool("pgbench")
def test_postgresql_runs_transactions_of_pgbench(start_superd: Start) -> None:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("needs PostgreSQL")
    port = free_port()
    user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}  # never root
    with public_directory() as directory:
        os.chown(directory, NOBODY, NOBODY)
        data = str(directory / "data")
        initdb = [f"{programs}/initdb", "-D", data, "-A", "trust", "-U", "bench", "--no-sync"]
        subprocess.run([*initdb, "--locale=C"], check=True, stdout=subprocess.DEVNULL, **user)
        server = [f"{programs}/postgres", "-D", data, "-F", "-p", str(port), "-h", "127.0.0.1"]
        with running(*server, "-k", "", port=port, cwd=directory, user=NOBODY):
            served = forward(start_superd, f"tcp://127.0.0.1:{port}")
            host, own = served.address("forward")
            env = {"PGHOST": host, "PGPORT": str(own), "PGUSER": "bench", "PGDATABASE": "postgres"}
            ask = (f"{programs}/psql", "-qAtX", "-c")
            until(lambda: run(*ask, "select 1", env=env).stdout == b"1\n", "the server to be ready")
            output(f"{programs}/pgbench", "-q", "-i", "-s", "1", env=env)
            load = ["-n", "-c", str(CLIENTS), "-j", "2", "-t", str(TRANSACTIONS)]
            output(f"{programs}/pgbench", *load, env=env)
            printed = output(*ask, BALANCED, env=env)
            events = closed_records(served, served.counts("forward")["accepted"])
    assert printed == f"t|{CLIENTS * TRANSACTIONS}\n".encode()
    assert len(events) >= 3 + CLIENTS
    # the client says goodbye and closes, on which the server closes: either may be seen first
    assert {event["end"] for event in events} <= {"client", "server"}
