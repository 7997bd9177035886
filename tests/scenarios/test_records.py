"""The records of connections of every kind and with every end, in the real daemon's files."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import (
    connect_many,
    connect_unix,
    receive_and_close,
    receive_to_end,
    reset,
)
from tests.support.harness import EVENT_TIMEOUT, Record, Superd, exchange, until, whole_lines
from tests.support.proc import children

PLUGIN = """
    from superd.plugin import Service, hookimpl

    class Ways(Service):
        name = "ways"

        async def stream(self, conn):
            word = (await conn.readline()).strip()
            await conn.send(b"so be it\\n")
            if word == b"fail":
                raise ValueError("as asked")
            if word == b"wait":
                await conn.read()

    @hookimpl
    def superd_services():
        return [Ways]
"""
TAKER = """
    import asyncio
    from superd.plugin import Service, hookimpl

    class Taker(Service):
        name = "taker"

        async def takeover(self, sock, conn):
            loop = asyncio.get_running_loop()
            data = await loop.sock_recv(sock, 100)
            await loop.sock_sendall(sock, data * 2)

    @hookimpl
    def superd_services():
        return [Taker]
"""
CLOSER = """
    import asyncio
    from superd.plugin import Service, hookimpl

    class Closer(Service):
        name = "closer"

        async def takeover(self, sock, conn):
            reader, writer = await asyncio.open_connection(sock=sock)
            writer.write(await reader.read(100))
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    @hookimpl
    def superd_services():
        return [Closer]
"""
PLUGINS = {"ways": PLUGIN, "taker": TAKER, "closer": CLOSER}

TOML = """
[daemon]
record-log = "{directory}/records"
record-format = "json"

[service.ways]
plugin = "ways"
listen = "tcp://127.0.0.1:0"

[service.taker]
plugin = "taker"
listen = "tcp://127.0.0.1:0"

[service.closer]
plugin = "closer"
listen = "tcp://127.0.0.1:0"

[service.program]
plugin = "exec"
listen = ["tcp://127.0.0.1:0", "unix://{directory}/program"]
options = { command = "cat" }

[service.timed]
plugin = "exec"
listen = "tcp://127.0.0.1:0"
idle-timeout = "1m"
options = { command = "cat" }

[service.daytime]
plugin = "daytime"
listen = "tcp://127.0.0.1:0"

[service.many]
plugin = "echo"
listen = ["tcp://*:0", "unix://{directory}/many"]

[service.hasty]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
first-byte-timeout = "300ms"

[service.idle]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
idle-timeout = "300ms"

[service.short]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
session-timeout = "300ms"

[service.closed]
plugin = "echo"
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]
allow = []

[service.quiet]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
record = []

[service.terse]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
record = "closed"
"""


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _empty_records(served: Superd) -> Iterator[None]:
    """Empty the file after each test, so that a test reads its own records only."""
    yield
    os.truncate(served.directory / "records", 0)


def events(served: Superd, service: str, number: int) -> list[Record]:
    """Wait until a service has `number` events, and return them."""

    def enough() -> list[Record] | None:
        found = served.records(service)
        return found if len(found) >= number else None

    seen = until(enough, f"{number} events of {service}")
    assert len(seen) == number
    return seen


def last(served: Superd, service: str) -> Record:
    """Return the closing event of a service's only connection, and compare it with the opening."""
    opening, closing = events(served, service, 2)
    assert (opening["event"], closing["event"]) == ("accepted", "closed")
    for key in ("pid", "conn", "peer", "local"):
        assert opening[key] == closing[key]
    assert closing["time"] >= opening["time"]
    assert 0 <= closing["duration"] < 60
    return closing


def test_a_connection_that_its_client_ends_is_recorded_with_the_end_client(served: Superd) -> None:
    client = served.connect("many")
    port = client.getsockname()[1]
    assert exchange(client, b"hello") == b"hello"
    closing = last(served, "many")
    host, own = served.address("many")
    assert host == "0.0.0.0"
    assert closing["peer"] == f"127.0.0.1:{port}"
    assert closing["local"] == f"tcp://127.0.0.1:{own}"
    assert (closing["in"], closing["out"], closing["end"]) == (5, 5, "client")


def test_the_record_has_the_local_address_on_a_multi_homed_host(served: Superd) -> None:
    port = served.address("many")[1]
    with socket.create_connection(("127.0.0.9", port), timeout=EVENT_TIMEOUT) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    assert last(served, "many")["local"] == f"tcp://127.0.0.9:{port}"


def test_the_record_of_an_ipv6_client_has_brackets(served: Superd) -> None:
    port = served.addresses("many")[1][1]
    with socket.create_connection(("::1", port), timeout=EVENT_TIMEOUT) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        own = client.getsockname()[1]
    closing = last(served, "many")
    assert (closing["peer"], closing["local"]) == (f"[::1]:{own}", f"tcp://[::1]:{port}")


def test_a_unix_client_cannot_forge_a_record_by_its_name(served: Superd) -> None:
    name = '\0evil"}\n{"time":1.5,"service":"many"\x1b[2J\u202e'
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(EVENT_TIMEOUT)
        client.bind(name.encode())
        client.connect(str(served.directory / "many"))
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    closing = last(served, "many")
    assert closing["local"] == f"unix://{served.directory}/many"
    assert closing["peer"].startswith('@evil"}\\n{')
    assert closing["peer"].isprintable()


def test_a_unix_client_without_a_name_is_recorded_as_unnamed(served: Superd) -> None:
    assert exchange(connect_unix(served.directory / "many"), b"x") == b"x"
    assert last(served, "many")["peer"] == "(unnamed)"


def test_a_connection_that_the_service_ends_is_recorded_with_the_end_server(served: Superd) -> None:
    with served.connect("ways") as client:
        client.sendall(b"go\n")
        assert receive_to_end(client) == (b"so be it\n", "fin")
    closing = last(served, "ways")
    assert (closing["in"], closing["out"], closing["end"]) == (3, 9, "server")


def test_an_answer_of_respond_is_recorded(served: Superd) -> None:
    assert len(receive_and_close(served.connect("daytime"))) == 26
    closing = last(served, "daytime")
    assert (closing["in"], closing["out"], closing["end"]) == (0, 26, "server")


def test_a_connection_that_a_plugin_took_over_is_recorded_with_its_bytes(served: Superd) -> None:
    with served.connect("taker") as client:
        client.sendall(b"abc")
        assert receive_to_end(client) == (b"abcabc", "fin")
    closing = last(served, "taker")
    assert (closing["in"], closing["out"], closing["end"]) == (3, 6, "server")


def test_the_fin_of_a_client_is_not_counted_as_a_byte(served: Superd) -> None:
    assert exchange(served.connect("taker"), b"abc") == b"abcabc"
    closing = last(served, "taker")
    assert (closing["in"], closing["out"]) == (3, 6)
    assert exchange(served.connect("timed"), b"abcd") == b"abcd"
    closing = last(served, "timed")
    assert (closing["in"], closing["out"], closing["end"]) == (4, 4, "server")
    assert served.counts("timed")["bytes-in"] == 4


def test_unknown_byte_counts_are_neither_recorded_nor_counted(served: Superd) -> None:
    assert exchange(served.connect("closer"), b"abc") == b"abc"
    closing = last(served, "closer")
    assert (closing["event"], closing["end"]) == ("closed", "server")
    assert not {"in", "out"} & closing.keys()
    counts = served.counts("closer")
    assert (counts["bytes-in"], counts["bytes-out"]) == (0, 0)


def test_the_record_of_a_program_has_its_process_id_and_its_bytes(served: Superd) -> None:
    with served.connect("program") as client:
        client.sendall(b"abc")
        assert client.recv(3) == b"abc"
        (worker,) = served.workers()
        (pid,) = children(worker)
    closing = last(served, "program")
    assert (closing["event"], closing["end"]) == ("closed", "server")
    assert (closing["program"], closing["in"], closing["out"]) == (pid, 3, 3)
    (accepted,) = (one for one in served.records("program") if one["conn"] == closing["conn"]
                   and one["event"] == "accepted")  # fmt: skip
    assert accepted["program"] == pid


def test_a_reset_by_the_client_is_recorded_with_the_end_reset(served: Superd) -> None:
    client = served.connect("ways")
    client.sendall(b"wait\n")
    assert client.recv(100) == b"so be it\n"
    reset(client)
    assert last(served, "ways")["end"] == "reset"


def test_a_failure_of_the_plugin_is_recorded_with_the_end_error(served: Superd) -> None:
    with served.connect("ways") as client:
        client.sendall(b"fail\n")
        receive_to_end(client)
    closing = last(served, "ways")
    assert closing["end"] == "error"
    served.wait_for_log(rf"plugin ways failed: .* conn={closing['conn']} ")


@pytest.mark.parametrize(
    ("service", "end"),
    [
        ("hasty", "first-byte-timeout"),
        ("idle", "idle-timeout"),
        ("short", "session-timeout"),
    ],
)
def test_a_timeout_is_recorded_as_the_end(served: Superd, service: str, end: str) -> None:
    with served.connect(service) as client:
        receive_to_end(client)
    assert last(served, service)["end"] == end


def test_a_refused_connection_is_recorded_with_the_reason(served: Superd) -> None:
    with served.connect("closed") as client:
        port = client.getsockname()[1]
        receive_to_end(client)
    (event,) = events(served, "closed", 1)
    assert (event["event"], event["reason"]) == ("refused", "access")
    assert event["peer"] == f"127.0.0.1:{port}"
    assert event["local"] == "tcp://127.0.0.1:{}".format(served.address("closed")[1])


def test_a_refused_datagram_is_recorded_with_the_reason(served: Superd) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", served.address("closed", "udp"))
        (event,) = events(served, "closed", 1)
    assert event["reason"] == "access"
    assert event["local"].startswith("udp://127.0.0.1:")


def test_events_that_the_entry_does_not_name_are_not_recorded(served: Superd) -> None:
    for service in ("quiet", "terse"):
        assert exchange(served.connect(service), b"x") == b"x"
    (event,) = events(served, "terse", 1)
    assert event["event"] == "closed"
    assert '"quiet"' not in (served.directory / "records").read_text()


def test_a_flood_of_refusals_is_summed_up_in_a_few_records(served: Superd) -> None:
    for _ in range(10):
        with connect_many(served.address("closed"), 100):
            pass

    def recorded() -> int:
        return sum(record.get("count", 1) for record in served.records())

    until(lambda: recorded() == 1000, "the records of all refusals")
    assert len(served.records()) <= 200
    assert served.counts("closed")["refused-access"] >= 1000


@pytest.mark.parametrize("form", ["text", "json", "xinetd"])
def test_a_flood_of_refusals_blames_no_source_for_others_and_leaves_none_out(
    start_superd: Start, form: str
) -> None:
    """A program such as fail2ban sees each source, in every form."""
    served = start_superd(
        f"""
        [daemon]
        record-log = "./records"
        record-format = "{form}"

        [service.closed]
        plugin = "echo"
        listen = "tcp://127.0.0.1:0"
        allow = "192.0.2.1"
        """
    )
    had = {"127.0.0.66": 100, "127.0.0.99": 1} | {f"127.0.0.{n}": 5 for n in range(10, 30)}
    for source, times in had.items():
        for _ in range(times):
            with contextlib.suppress(ConnectionError), served.connect("closed", source) as client:
                client.recv(1)
    pattern = {
        "text": r" peer=([0-9.]+):\d+ .* reason=access(?: count=(\d+))?$",
        "json": r'"peer":"([0-9.]+):\d+".*"reason":"access"(?:,"count":(\d+))?}$',
        "xinetd": r" FAIL: closed address from=([0-9.]+)()$",
    }[form]

    def told() -> dict[str, int]:
        counts = collections.Counter[str]()
        for line in whole_lines(served.directory / "records").splitlines():
            match = re.search(pattern, line)
            assert match, line
            counts[match[1]] += int(match[2] or 1)
        return dict(counts)

    if form == "xinetd":  # its lines have no numbers
        until(lambda: told().keys() == had.keys(), "a record of each source")
    else:
        until(lambda: told() == had, "the records of all refusals")


def test_ids_are_unique_and_every_connection_has_both_events(served: Superd) -> None:
    for _ in range(10):
        with connect_many(served.address("many"), 50) as clients:
            for client in clients:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
    seen = events(served, "many", 1000)
    by_kind = {
        kind: {event["conn"] for event in seen if event["event"] == kind}
        for kind in ("accepted", "closed")
    }
    assert by_kind["accepted"] == by_kind["closed"]
    assert len(by_kind["closed"]) == 500


# Sinks that fail


SIMPLE = """
[daemon]
record-log = "{log}"

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
deny = "127.0.0.66"
"""


def count_closed(file: Path) -> int:
    return whole_lines(file).count(" closed service=echo ")


def test_usr1_reopens_a_record_log_that_was_renamed_or_removed(
    start_superd: Start, tmp_path: Path
) -> None:
    file = tmp_path / "records"
    served = start_superd(SIMPLE.format(log=file))
    exchange(served.connect("echo"), b"x")
    until(lambda: count_closed(file) == 1, "a record")
    file.rename(tmp_path / "records.1")
    exchange(served.connect("echo"), b"x")
    until(lambda: count_closed(tmp_path / "records.1") == 2, "a record in the renamed file")
    served.signal(signal.SIGUSR1)
    served.wait_for_log("log files reopened")
    exchange(served.connect("echo"), b"x")
    until(lambda: count_closed(file) == 1, "a record in the new file")
    file.unlink()
    served.signal(signal.SIGUSR1)
    until(file.exists, "the new file")


@pytest.mark.root
def test_a_full_disk_loses_only_records_and_their_number_is_counted(
    start_superd: Start, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a file system here")
    try:
        served = start_superd(SIMPLE.format(log=disk / "records"))
        (disk / "ballast").write_bytes(bytes(60_000))
        for _ in range(200):
            assert exchange(served.connect("echo"), b"x") == b"x"
        until(lambda: served.answer()["log-failures"], "records to be lost")
        (disk / "ballast").unlink()

        def recovered() -> re.Match[str] | None:
            assert exchange(served.connect("echo"), b"x") == b"x"
            return re.search(r"(\d+) log records were lost", whole_lines(disk / "records"))

        lost = until(recovered, "records to be written again")
        assert int(lost[1]) <= served.answer()["log-failures"]
        total = (disk / "records").read_text().count("\n")
        assert total + served.answer()["log-failures"] >= 400
    finally:
        served.stop()
        subprocess.run(["umount", str(disk)], check=True)


def test_a_stopped_reader_of_the_records_delays_no_client(
    start_superd: Start, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        served = start_superd(SIMPLE.format(log=pipe))
        for _ in range(1000):
            assert exchange(served.connect("echo"), b"x") == b"x"
        until(lambda: served.answer()["log-failures"], "records to be lost")
        received = bytearray()

        def reports_the_loss() -> bool:
            assert exchange(served.connect("echo"), b"x") == b"x"
            with contextlib.suppress(BlockingIOError):
                received.extend(os.read(reader, 1 << 20))
            return b"log records were lost" in received

        until(reports_the_loss, "the number of lost records")
    finally:
        os.close(reader)


@pytest.mark.tool("fail2ban-regex")
def test_the_xinetd_filter_of_fail2ban_matches_the_records(
    start_superd: Start, tmp_path: Path
) -> None:
    file = tmp_path / "records"
    toml = SIMPLE.format(log=file).replace("[daemon]", '[daemon]\nrecord-format = "xinetd"')
    served = start_superd(toml)
    for _ in range(3):
        with served.connect("echo", "127.0.0.66") as client:
            receive_to_end(client)
    exchange(served.connect("echo"), b"x")
    until(lambda: " EXIT: echo status=0 pid=0 " in whole_lines(file), "the records")
    done = subprocess.run(
        ["fail2ban-regex", str(file), "/etc/fail2ban/filter.d/xinetd-fail.conf"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert re.search(r"Lines: 5 lines, 0 ignored, 3 matched, 2 missed", done.stdout)
    starts = re.findall(
        r"^\d\d/\d\d/\d\d@\d\d:\d\d:\d\d: START: echo pid=0 from=127\.0\.0\.1$",
        file.read_text(),
        re.MULTILINE,
    )
    assert len(starts) == 1
