"""`superd connections` and `superd kill`: connections of each kind, worker and generation."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from superd.observe.connections import End
from tests.conftest import Start
from tests.support.clients import connect_many, is_open, receive_to_end
from tests.support.harness import EVENT_TIMEOUT, Record, Superd, is_alive, until
from tests.support.ports import free_port
from tests.support.proc import children

PLUGINS = {
    "lines": """
        from superd.plugin import Service, hookimpl

        class Lines(Service):
            name = "lines"

            async def stream(self, conn):
                async for line in conn:
                    await conn.send(line)

        @hookimpl
        def superd_services():
            return [Lines]
        """,
    "blocking": """
        from superd.plugin import Service, hookimpl

        class Blocking(Service):
            name = "blocking"

            def stream(self, conn):
                for line in conn:
                    conn.send(line)

        @hookimpl
        def superd_services():
            return [Blocking]
        """,
}

TOML = """
[daemon]
record-log = "{directory}/records"
record-format = "json"

[defaults]
listen = "tcp://127.0.0.1:0"
user = "root"

[service.echo]
plugin = "echo"
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0", "unix://{directory}/echo"]

[service.lines]
plugin = "lines"

[service.thread]
plugin = "blocking"

[service.fork]
plugin = "blocking"
model = "fork"

[service.prefork]
plugin = "blocking"
model = "prefork"
processes = 2

[service.cat]
plugin = "exec"
options = { command = ["cat"] }

[service.timed]
plugin = "exec"
idle-timeout = "1h"
options = { command = ["cat"] }

[service.forward]
plugin = "forward"
options = { to = "unix://{directory}/echo" }

[service.datagrams]
plugin = "forward"
listen = "udp://127.0.0.1:0"
options = { to = "unixgram://@superd-operating-{pid}" }

[service.waiting]
plugin = "exec"
wait = true
options = { command = ["sleep", "3600"] }
""".replace("{pid}", str(os.getpid()))

STREAMS = ("echo", "lines", "thread", "fork", "prefork", "cat", "timed", "forward")


def listed(served: Superd, service: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of `superd connections` from the control socket; faster than the command."""
    answer = served.answer("connections", service=service)
    assert (answer["untold"], answer["left-out"]) == ([], 0)
    rows: list[dict[str, Any]] = answer["connections"]
    return rows


def kill(served: Superd, row: dict[str, Any]) -> None:
    assert served.answer("kill", id=row["id"]) == {}


def closed_record(served: Superd, connection: str) -> Record:
    """Wait for the record of the end of a connection."""

    def found() -> Record | None:
        ends = served.records(event="closed")
        return next((record for record in ends if record["conn"] == connection), None)

    return until(found, f"the end of {connection}")


@pytest.fixture
def echoed(served: Superd, request: pytest.FixtureRequest) -> Iterator[tuple[str, socket.socket]]:
    """A client that has sent five bytes and received them back."""
    with served.connect(request.param) as client:
        client.sendall(b"1234\n")
        assert client.recv(100) == b"1234\n"
        yield request.param, client


@pytest.mark.parametrize("echoed", STREAMS, indirect=True)
def test_a_connection_is_listed_and_can_be_killed(
    served: Superd, echoed: tuple[str, socket.socket]
) -> None:
    service, client = echoed

    def counted() -> list[dict[str, Any]] | None:
        rows = listed(served, service)
        return rows if [row["out"] for row in rows] == [5] else None

    [row] = until(counted, "the counted bytes")  # a handler counts after it has sent
    assert row["in"] == 5
    host, port = client.getsockname()
    assert (row["service"], row["peer"]) == (service, f"{host}:{port}")
    assert row["local"] == "tcp://{}:{}".format(*client.getpeername())
    assert (row["state"], row["generation"]) == ("open", 1)
    assert 0 <= row["age"] < EVENT_TIMEOUT
    assert row["worker"] in served.workers()
    assert row["target"] == (f"unix://{served.directory}/echo" if service == "forward" else "")
    kill(served, row)
    assert receive_to_end(client)[0] == b""
    record = closed_record(served, row["id"])
    assert (record["end"], record["service"]) == (End.KILLED.value, service)
    assert listed(served, service) == []
    served.wait_for_log(f"info: connection {row['id']} ended by the operator")
    again = served.answer("kill", id=row["id"])
    assert again == {"error": f"there is no connection {row['id']}"}


def test_killing_a_connection_ends_its_program(served: Superd) -> None:
    with served.connect("cat") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        [row] = listed(served, "cat")
        [program] = children(row["worker"])
        kill(served, row)
        until(lambda: not is_alive(program), "the program to end")
    assert closed_record(served, row["id"])["outcome"].startswith("ended by superd; signal 15")


def test_a_source_of_datagrams_is_listed_and_can_be_killed(served: Superd) -> None:
    name = f"\0superd-operating-{os.getpid()}"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as target,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        target.bind(name)
        target.settimeout(EVENT_TIMEOUT)
        client.connect(served.address("datagrams", "udp"))
        client.send(b"hello")
        assert target.recv(100) == b"hello"
        [row] = listed(served, "datagrams")
        assert (row["in"], row["state"]) == (5, "open")
        assert row["peer"] == "{}:{}".format(*client.getsockname())
        kill(served, row)
        assert closed_record(served, row["id"])["end"] == "killed"
        assert listed(served, "datagrams") == []


def test_a_program_with_the_listening_socket_is_listed_and_can_be_killed(served: Superd) -> None:
    with served.connect("waiting"):
        rows = until(lambda: listed(served, "waiting"), "the program")
        row = rows[0]
        assert (row["state"], row["in"], row["out"]) == ("running", None, None)
        kill(served, row)
        assert closed_record(served, row["id"])["end"] == "killed"


def test_a_half_closed_connection_can_be_killed(served: Superd) -> None:
    with served.connect("forward") as client, served.connect("lines") as other:
        other.sendall(b"no end")
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        [row] = listed(served, "lines")
        other.shutdown(socket.SHUT_WR)
        assert receive_to_end(other)[0] == b"no end"
        assert closed_record(served, row["id"])["end"] == "client"
        [row] = listed(served, "forward")
        kill(served, row)
        assert closed_record(served, row["id"])["end"] == "killed"


def test_no_connection_and_unknown_names_are_reported(served: Superd) -> None:
    assert served.run("connections", "echo").stdout == "no open connections\n"
    done = served.run("connections", "ehco")
    text = 'superd: there is no service "ehco" (did you mean "echo"?)\n'
    assert (done.returncode, done.stderr) == (2, text)
    for name in ("ff-ff", "1-ffff"):
        done = served.run("kill", name)
        assert (done.returncode, done.stderr) == (1, f"superd: there is no connection {name}\n")
    assert "expected a connection's id, such as 1-2f" in served.run("kill", "all").stderr


def test_superd_connections_prints_a_line_for_each_connection(served: Superd) -> None:
    with served.connect("echo") as client:
        client.sendall(b"x" * 2048)
        until(lambda: listed(served, "echo")[0]["out"] == 2048, "the counted bytes")
        head, line = served.run("connections", "echo").stdout.splitlines()
    assert head.split() == [
        "id", "service", "peer", "local", "age", "in", "out", "state", "target", "worker",
        "generation",
    ]  # fmt: skip
    assert line.split()[5:9] == ["2.0KiB", "2.0KiB", "open", "-"]


def test_connections_of_a_draining_generation_are_listed_and_can_be_killed(
    start_superd: Start,
) -> None:
    served = start_superd('[service.echo]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n')
    with served.connect("echo") as old, served.connect("echo") as kept:
        until(lambda: len(listed(served)) == 2, "both connections")
        assert served.run("reload").returncode == 0
        with served.connect("echo") as new:
            until(lambda: len(listed(served)) == 3, "the third connection")
            rows = {row["peer"]: row for row in listed(served)}
            clients = (old, kept, new)
            row_of = {client: rows["{}:{}".format(*client.getsockname())] for client in clients}
            assert [row_of[client]["generation"] for client in clients] == [1, 1, 2]
            assert row_of[old]["worker"] == row_of[kept]["worker"] != row_of[new]["worker"]
            kill(served, row_of[old])
            assert receive_to_end(old) == (b"", "fin")
            assert is_open(kept)
            assert is_open(new)


def test_connections_of_a_disabled_service_are_listed_after_an_upgrade(
    start_superd: Start,
) -> None:
    entry = '[service.{}]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n'
    served = start_superd(entry.format("echo") + entry.format("other"))
    with served.connect("echo"):
        until(lambda: len(listed(served)) == 1, "a connection")
        assert served.run("disable", "echo").returncode == 0
        assert served.run("upgrade").returncode == 0
        assert [row["service"] for row in listed(served, "echo")] == ["echo"]
        assert served.answer()["leaving"] == {"echo": 1}
        assert "echo  not served any more; 1 connections continue\n" in served.run("status").stdout
    until(lambda: served.answer()["leaving"] == {}, "the connection to end")


def test_a_draining_worker_releases_the_addresses_of_other_workers(
    start_superd: Start,
) -> None:
    served = start_superd(f"""
[daemon]
workers = 2

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"

[service.passed]
plugin = "forward"
listen = "udp://127.0.0.1:{free_port()}"
options = {{ to = "udp://127.0.0.1:9" }}
""")
    with contextlib.ExitStack() as clients:

        def both_have_connections() -> bool:
            clients.enter_context(served.connect("echo"))
            return len({row["worker"] for row in listed(served)}) == 2

        until(both_have_connections, "a connection of each worker")
        for word in ("disable", "enable"):
            done = served.run(word, "passed")
            assert (done.returncode, done.stderr) == (0, "")


def test_the_commands_connections_and_kill_work_together(served: Superd) -> None:
    with served.connect("echo") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        [row] = json.loads(served.run("connections", "echo", "--json").stdout)["connections"]
        assert row["peer"] == "{}:{}".format(*client.getsockname())
        done = served.run("kill", row["id"])
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert receive_to_end(client) == (b"", "fin")


def test_connections_without_records_are_listed_in_full(start_superd: Start) -> None:
    toml = '[service.echo]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\nrecord = []\n'
    served = start_superd(toml)
    with served.connect("echo") as client:
        until(lambda: listed(served), "the client")
        [row] = listed(served)
        assert row["peer"] == "{}:{}".format(*client.getsockname())
        assert row["local"] == "tcp://{}:{}".format(*client.getpeername())
        kill(served, row)
        assert receive_to_end(client) == (b"", "fin")


def test_a_hanging_worker_is_reported_and_does_not_block_the_commands(start_superd: Start) -> None:
    served = start_superd(
        '[daemon]\nworkers = 2\n[service.echo]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n'
    )
    hanging, _ = served.workers()
    os.kill(hanging, signal.SIGSTOP)
    with ThreadPoolExecutor() as both:
        listing = both.submit(served.run, "connections")
        killing = both.submit(served.run, "kill", "1-1")
        assert served.answer()["state"] == "serving"
        error = f"superd: worker {hanging} of generation 1 did not answer"
        assert listing.result().returncode == 1
        assert listing.result().stderr.startswith(error)
        error = f"as far as is known: worker {hanging} did not answer"
        assert error in killing.result().stderr
    os.kill(hanging, signal.SIGCONT)
    assert listed(served) == []
    assert hanging in served.workers()


@pytest.mark.parametrize(
    "number",
    [1500, pytest.param(8000, marks=pytest.mark.soak)],
)
def test_every_one_of_many_connections_is_listed(start_superd: Start, number: int) -> None:
    served = start_superd(
        '[daemon]\nworkers = 2\n[service.echo]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n'
    )
    with connect_many(served.address("echo"), number) as clients:
        until(lambda: served.counts("echo")["active"] == number, "the accepted connections")
        rows = listed(served)
        peers = {"{}:{}".format(*client.getsockname()) for client in clients}
        assert {row["peer"] for row in rows} == peers
        assert len(rows) == number == len({row["id"] for row in rows})


def test_the_traffic_of_a_service_includes_ended_and_open_connections(
    start_superd: Start,
) -> None:
    served = start_superd('[service.echo]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n')

    def traffic() -> Any:
        return served.answer("traffic")["traffic"]["echo"]

    with served.connect("echo") as client:
        client.sendall(b"12345")
        assert client.recv(10) == b"12345"
        assert traffic() == {"in": 5, "out": 5}
        assert served.counts("echo")["bytes-in"] == 0
    until(lambda: served.counts("echo")["bytes-in"] == 5, "the end of the connection")
    assert traffic() == {"in": 5, "out": 5}
