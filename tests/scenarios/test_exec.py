"""The plugin exec: unmodified inetd programs over every transport, well-behaved and not."""

from __future__ import annotations

import os
import random
import re
import select
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Start
from tests.support.clients import (
    ask_unixpacket,
    connect_many,
    connect_unix,
    exchange_digests,
    is_open,
    receive_to_end,
)
from tests.support.harness import (
    EVENT_TIMEOUT,
    Record,
    Superd,
    ask_udp,
    exchange,
    is_alive,
    receive_all,
    until,
)
from tests.support.proc import children, descriptors, memory

FDS = 'for f in /proc/$$/fd/*; do [ -e "$f" ] && echo "${f##*/}"; done'
IGNORES_TERM = "trap '' TERM; echo $$; while :; do sleep 0.05; done"
WAITER = r'use Socket; for (1..3) { accept(C, STDIN); syswrite C, "$$\n"; close C }'
SINGLE = 'use Socket; accept(C, STDIN); syswrite C, "hello"'
PATIENT = r"use Socket; for (1..2) { accept(C, STDIN) or die $!; print C <C> or die $!; close C }"
STAYER = '$p = recv STDIN, $d, 65536, 0; send STDOUT, "$$", 0, $p; $d eq "stay" and sleep 600'
SHOUTER = "$p = recv STDIN, $d, 65536, 0; send STDOUT, uc $d, 0, $p"
LIBC_SIGNALS = 0x1_8000_0000  # two internal signals, which posix_spawn(3) leaves ignored

TOML = """
[daemon]
record-log = "{directory}/records"
record-format = "json"

[defaults]
plugin = "exec"
listen = "tcp://127.0.0.1:0"

[service.cat]
listen = ["tcp://127.0.0.1:0", "unix://{directory}/cat", "unixpacket://{directory}/cat.packets"]
options = { command = "cat" }

[service.env]
options = { command = "env", env = { ONE = "1" }, pass-env = ["SECRET_NOT", "WANTED"] }

[service.fds]
options = { command = ["sh", "-c", "{fds}"] }

[service.signals]
options = { command = ["grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"] }

[service.stat]
options = { command = ["cat", "/proc/self/stat"], argv0 = "kitten" }

[service.name]
options = { command = ["sh", "-c", "tr '\\\\0' ' ' < /proc/$$/cmdline"], argv0 = "kitten" }

[service.pwd]
options = { command = "pwd", directory = "/usr/bin" }

[service.complains]
options = { command = ["sh", "-c", "printf 'one\\\\ntwo\\\\33[2J' >&2; echo out; exit 7"] }

[service.rude]
options = { command = ["sh", "-c", "echo oops >&2"], stderr = "client" }

[service.silent]
options = { command = ["sh", "-c", "echo oops >&2"], stderr = "discard" }

[service.slow]
options = { command = ["sleep", "600"], max-run-time = "300ms" }

[service.stubborn]
options = { command = ["sh", "-c", "{ignores}"], max-run-time = "300ms" }

[service.forever]
options = { command = ["sleep", "600"] }
idle-timeout = "500ms"

[service.silence]
options = { command = ["sh", "-c", "read line; echo $line; exec sleep 600"] }
first-byte-timeout = "500ms"
session-timeout = "1500ms"

[service.busy]
options = { command = "cat" }
idle-timeout = "1s"

[service.timely]
options = { command = ["sh", "-c", "{ignores}"] }
session-timeout = "300ms"

[service.orphan]
options = { command = ["sh", "-c", "yes >&2 & yes >&2 & yes >&2 & echo out"] }

[service.family]
listen = ["tcp://127.0.0.1:0", "unix://{directory}/family"]
options = { command = ["env"] }

[service.short]
options = { command = "true" }

[service.systemd]
options.command = ["sh", "-c", "[ $LISTEN_PID = $$ ] && echo $LISTEN_FDS >&3"]
options.listen-fds = true

[service.waiter]
wait = true
options = { command = ["perl", "-e", '{waiter}'] }

[service.shouter]
listen = ["udp://127.0.0.1:0", "unixgram://@superd-exec-{pid}"]
wait = true
options = { command = ["perl", "-e", '{shouter}'] }

[service.each]
listen = "udp://127.0.0.1:0"
options = { command = ["perl", "-e", '{shouter}'] }

[service.patient]
listen = ["tcp://127.0.0.1:0", "unix://{directory}/patient"]
wait = true
options = { command = ["perl", "-e", '{patient}'] }

[service.some]
listen = "udp://127.0.0.1:0"
options = { command = ["perl", "-e", '{stayer}'] }

[service.barred]
listen = "udp://127.0.0.1:0"
wait = true
deny = "127.0.0.0/8"
options = { command = ["perl", "-e", '{shouter}'] }
""".replace("{fds}", FDS.replace('"', '\\"')).replace("{ignores}", IGNORES_TERM)
TOML = TOML.replace("{waiter}", WAITER).replace("{shouter}", SHOUTER)
TOML = TOML.replace("{patient}", PATIENT).replace("{stayer}", STAYER)
TOML = TOML.replace("{pid}", str(os.getpid()))


pytestmark = pytest.mark.tool("perl")


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("WANTED", "yes")
    patch.setenv("LEAKENV", "secret")
    yield
    patch.undo()


def output(served: Superd, service: str) -> str:
    with served.connect(service) as client:
        return receive_all(client).decode()


def service_status(status: dict[str, Any], service: str) -> dict[str, Any]:
    """Return the part of `superd status --json` about a service."""
    found: dict[str, Any] = next(one for one in status["services"] if one["name"] == service)
    return found


def has_ended(pid: int) -> bool:
    return not is_alive(pid)


def last_record(served: Superd, service: str) -> Record:
    def found() -> Record | None:
        ended = served.records(service, "closed")
        return ended[-1] if ended else None

    return until(found, f"the record of the end of {service}")


def test_cat_is_an_echo_over_every_stream(served: Superd) -> None:
    data = random.Random(1).randbytes(3_000_000)
    with served.connect("cat") as client:
        sent, received = exchange_digests(client, data, 2)
        assert sent == received
    assert exchange(connect_unix(served.directory / "cat"), b"hello") == b"hello"
    assert ask_unixpacket(served.directory / "cat.packets", b"one", b"two") == [b"one", b"two"]


def test_a_program_waits_for_a_slow_client(served: Superd) -> None:
    """Its descriptor is blocking. Otherwise its read would fail, and it would end."""
    with served.connect("cat") as client:
        until(lambda: children(served.workers()[0]), "the program to run")
        assert is_open(client)
        client.sendall(b"at last")
        assert client.recv(100) == b"at last"


def test_the_environment_is_exactly_what_is_documented(served: Superd) -> None:
    with served.connect("env") as client:
        own = client.getsockname()[1]
        environment = receive_all(client).decode()
    port = served.address("env")[1]
    assert sorted(environment.splitlines()) == sorted(
        [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "WANTED=yes",
            "ONE=1",
            "PROTO=TCP",
            "TCPLOCALIP=127.0.0.1",
            f"TCPLOCALPORT={port}",
            "TCPREMOTEIP=127.0.0.1",
            f"TCPREMOTEPORT={own}",
            "REMOTE_HOST=127.0.0.1",
            "REMOTE_ADDR=127.0.0.1",
            f"REMOTE_PORT={own}",
        ]
    )


def test_a_program_has_exactly_three_descriptors(served: Superd) -> None:
    assert output(served, "fds") == "0\n1\n2\n"


def test_a_program_starts_with_no_signal_ignored_or_blocked(served: Superd) -> None:
    blocked, ignored = (int(n, 16) for n in re.findall(r"\t(\w+)", output(served, "signals")))
    assert (blocked, ignored & ~LIBC_SIGNALS) == (0, 0)


def test_a_program_has_its_own_session(served: Superd) -> None:
    pid, _, rest = output(served, "stat").partition(" ")
    fields = rest.rpartition(")")[2].split()
    assert fields[2] == fields[3] == pid  # its process group and its session


def test_a_program_has_the_configured_argv0_and_directory(served: Superd) -> None:
    assert output(served, "name").startswith("kitten -c ")
    assert output(served, "pwd") == "/usr/bin\n"


def test_standard_error_is_logged_line_by_line_and_not_sent_to_the_client(served: Superd) -> None:
    assert output(served, "complains") == "out\n"
    found = served.wait_for_log(r"warning: one service=complains conn=(\S+) peer=127\.0\.0\.1:")
    served.wait_for_log(rf"warning: two\\x1b\[2J service=complains conn={found[1]} ")
    record = last_record(served, "complains")
    assert record["conn"] == found[1]
    assert re.fullmatch(r"status 7, \d\.\d{3} s of CPU", record["outcome"])


def test_standard_error_can_be_sent_to_the_client_or_discarded(
    served: Superd,
) -> None:
    assert output(served, "rude") == "oops\n"
    assert output(served, "silent") == ""


@pytest.mark.parametrize(("service", "signals"), [("slow", "15"), ("stubborn", "9")])
def test_a_program_is_ended_after_max_run_time(served: Superd, service: str, signals: str) -> None:
    with served.connect(service) as client:
        receive_to_end(client)
    outcome = last_record(served, service)["outcome"]
    assert outcome.startswith(f"max-run-time is over; signal {signals}, ")


def test_listen_fds_passes_the_connection_as_systemd_does(served: Superd) -> None:
    assert output(served, "systemd") == "1\n"


def test_a_wait_program_gets_the_listener_and_is_started_again_after_its_end(
    served: Superd,
) -> None:
    pids = [output(served, "waiter") for _ in range(6)]
    assert pids[0] == pids[1] == pids[2] != pids[3] == pids[4] == pids[5]
    assert served.counts("waiter")["accepted"] == 2


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_a_wait_program_can_block_in_accept_and_read(served: Superd, transport: str) -> None:
    """superd's socket timeouts affect neither its accept(2) nor its read(2)."""
    before = served.counts("patient")["accepted"]
    for number in range(2):
        client = (
            served.connect("patient")
            if transport == "tcp"
            else connect_unix(served.directory / "patient")
        )
        assert not select.select([client], [], [], 0.1)[0]
        assert exchange(client, b"hello %d\n" % number) == b"hello %d\n" % number
    assert served.counts("patient")["accepted"] == before + 1
    assert "Resource temporarily unavailable" not in served.log()


def test_programs_that_share_a_socket_keep_it_blocking_when_another_program_ends(
    served: Superd,
) -> None:
    address = served.address("some", "udp")
    (worker,) = served.workers()
    staying = int(ask_udp(address, b"stay"))
    for _ in range(3):
        ending = int(ask_udp(address, b"go"))
        until(partial(has_ended, ending), "the end of one program")
    (socket_of,) = (one for one in descriptors(staying) if one.number == 0)
    assert not socket_of.flags & os.O_NONBLOCK
    for pid in children(worker):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("service", ["shouter", "each"])
def test_a_datagram_starts_a_program_that_reads_it(served: Superd, service: str) -> None:
    for number in range(3):
        data = b"hello %d" % number
        assert ask_udp(served.address(service, "udp"), data) == data.upper()


def test_a_refused_datagram_starts_no_program_and_is_removed_from_the_queue(
    served: Superd,
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for _ in range(3):
            client.sendto(b"x", served.address("barred", "udp"))
        until(
            lambda: served.counts("barred")["refused-access"] == 3, "the refusal of all datagrams"
        )
    assert served.counts("barred")["datagrams"] == 0


def test_a_program_is_ended_after_idle_timeout(served: Superd) -> None:
    """Whether or not the client is still connected: the program may never notice that."""
    (worker,) = served.workers()
    for leaves in (False, True):
        until(lambda: not children(worker), "the end of the programs before")
        with served.connect("forever") as client:
            (pid,) = until(lambda: children(worker), "the program to run")
            if not leaves:
                assert receive_to_end(client) == (b"", "fin")
        served.wait_until_idle("forever")
        assert not is_alive(pid)
        record = last_record(served, "forever")
        assert record["end"] == "idle-timeout"
        assert record["outcome"].startswith("ended by superd; signal 15, ")
    assert served.counts("forever")["errors"] == 0


def test_a_program_whose_client_sends_data_is_not_idle(served: Superd) -> None:
    with served.connect("busy") as client:
        for _ in range(5):
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            assert not select.select([client], [], [], 0.4)[0]  # no client is closed in a pause
        client.shutdown(socket.SHUT_WR)
        assert receive_to_end(client) == (b"", "fin")
    assert last_record(served, "busy")["end"] == "server"


def test_a_program_is_ended_after_first_byte_timeout_and_session_timeout(served: Superd) -> None:
    with served.connect("silence") as client:
        assert receive_to_end(client) == (b"", "fin")
    assert last_record(served, "silence")["end"] == "first-byte-timeout"
    served.wait_until_idle("silence")
    with served.connect("silence") as client:
        client.sendall(b"hello\n")
        assert receive_to_end(client) == (b"hello\n", "fin")
    until(lambda: last_record(served, "silence")["end"] == "session-timeout", "the record")


def test_a_program_that_ignores_term_is_killed_and_leaves_no_zombie(
    served: Superd,
) -> None:
    (worker,) = served.workers()
    with served.connect("timely") as client:
        pid = int(client.makefile().readline())
        receive_to_end(client)
    served.wait_until_idle("timely")
    assert pid not in children(worker)
    record = last_record(served, "timely")
    assert record["end"] == "session-timeout"
    assert record["outcome"].startswith("ended by superd; signal 9, ")


def test_endless_standard_error_of_a_child_process_does_not_keep_the_connection(
    served: Superd,
) -> None:
    """The program's children keep its standard error open, and must not block the worker."""
    assert output(served, "orphan") == "out\n"
    served.wait_until_idle("orphan")
    assert output(served, "pwd") == "/usr/bin\n"
    (worker,) = served.workers()
    assert memory(worker) < 200_000


@pytest.mark.parametrize("name", [b"\0superd\0exec", b"\0superd\nexec="])
def test_a_misleading_name_of_a_unix_client_is_not_passed_to_the_program(
    served: Superd, name: bytes
) -> None:
    (worker,) = served.workers()
    before = len(descriptors(worker))
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(EVENT_TIMEOUT)
            client.bind(name + b"%d" % os.getpid())
            client.connect(str(served.directory / "family"))
            environment = receive_all(client)
            assert b"PROTO=IPC" in environment
            assert b"IPCREMOTEPATH" not in environment
    served.wait_until_idle("family")
    until(lambda: len(descriptors(worker)) <= before, "the closing of all descriptors")


FEW_AND_MANY = pytest.mark.parametrize("number", [200, pytest.param(1000, marks=pytest.mark.soak)])


@FEW_AND_MANY
def test_many_programs_killed_at_random_leave_no_zombie_and_no_descriptor_behind(
    served: Superd, number: int
) -> None:
    (worker,) = served.workers()
    until(lambda: not children(worker), "the end of the programs of other tests")
    before = len(descriptors(worker))
    rng = random.Random(7)
    with connect_many(served.address("cat"), number) as clients:
        for client in clients:
            client.sendall(b"x")
        for client in clients:
            assert client.recv(1) == b"x"
        running = children(worker)
        assert len(running) == number
        assert service_status(served.status(), "cat")["counts"]["active"] == number
        rng.shuffle(running)
        for pid in running:
            os.kill(pid, rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV)))
        began = time.monotonic()
        for client in clients:
            assert receive_to_end(client)[0] == b""
        until(lambda: not children(worker), "the reaping of the last child")
        print(f"{number} programs had ended {time.monotonic() - began:.2f} s after the last signal")
    served.wait_until_idle("cat")
    until(lambda: len(descriptors(worker)) <= before, "the closing of all descriptors")
    assert service_status(served.status(), "cat")["counts"]["active"] == 0


@pytest.mark.parametrize("number", [200, pytest.param(10_000, marks=pytest.mark.soak)])
def test_short_programs_leave_no_zombie(served: Superd, number: int) -> None:
    (worker,) = served.workers()
    until(lambda: not children(worker), "the end of the programs of other tests")
    before, accepted = len(descriptors(worker)), served.counts("short")["accepted"]
    for _ in range(number // 50):
        with connect_many(served.address("short"), 50) as clients:
            for client in clients:
                assert receive_to_end(client) == (b"", "fin")
    served.wait_until_idle("short")
    assert served.counts("short")["accepted"] == accepted + number
    assert children(worker) == []
    until(lambda: len(descriptors(worker)) <= before, "the closing of all descriptors")


def test_a_missing_program_is_reported_at_the_start(tmp_path: Path) -> None:
    toml = '[service.x]\nplugin = "exec"\nlisten = "tcp://127.0.0.1:0"\n'
    superd = Superd(tmp_path, toml + 'options = { command = "/no/such/program" }\n')
    superd.write()
    done = superd.run("run")
    assert done.returncode == 78
    assert 'superd.toml:9:23: service.x.options.command: there is no program "/no' in done.stderr
    assert "/no/such/program" in done.stderr


@pytest.mark.parametrize(
    ("options", "mistake"),
    [
        ('command = ["cat", "a\\u0000"]', "options.command: expected a text without NUL"),
        ('command = "cat", argv0 = "\\u0000"', "options.argv0: expected a text without NUL"),
        ('command = "cat", env = { A = "\\u0000" }', "options.env: expected a text without NUL"),
        ('command = "cat", env = { "A=" = "b" }', "options.env: expected the name of a variable"),
        ('command = "cat", env = { "" = "b" }', "options.env: expected the name of a variable"),
        (
            'command = "cat", argv0 = "a", listen-fds = true',
            "options.listen-fds: listen-fds and argv0",
        ),
    ],
)
def test_check_reports_options_that_no_program_can_get(
    tmp_path: Path, options: str, mistake: str
) -> None:
    toml = f'[service.x]\nplugin = "exec"\nlisten = "unix://@x"\noptions = {{ {options} }}\n'
    superd = Superd(tmp_path, toml)
    superd.write()
    done = superd.run("check")
    assert done.returncode == 78
    assert f"service.x.{mistake}" in done.stderr


@pytest.mark.parametrize("stderr", ["log", "client"])
def test_clients_wait_while_descriptors_are_exhausted_and_all_are_served(
    start_superd: Start, stderr: str
) -> None:
    served = start_superd(
        f"""
        [service.cat]
        plugin = "exec"
        listen = "tcp://127.0.0.1:0"
        options = {{ command = "cat", stderr = "{stderr}" }}
        rlimits = {{ nofile = 64 }}
        """
    )
    (worker,) = served.workers()
    with connect_many(served.address("cat"), 100) as clients:
        for client in clients:
            client.sendall(b"x")
        served.wait_for_log(
            "cannot start its plugin, clients wait: Too many open files service=cat"
        )
        until(lambda: len(children(worker)) > 10, "as many programs as descriptors allow")
        pending = set(clients)
        while pending:
            answered = set(select.select(list(pending), [], [], EVENT_TIMEOUT)[0])
            assert answered
            for client in answered:
                assert client.recv(1) == b"x"
                client.close()
            pending -= answered
    until(lambda: not children(worker), "the reaping of the last child")
    began = time.monotonic()
    assert exchange(served.connect("cat"), b"hello") == b"hello"
    assert time.monotonic() - began < 1
    assert served.counts("cat")["errors"] == 0


def test_a_program_that_cannot_be_started_closes_connections_and_then_pauses_the_service(
    start_superd: Start, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho fine\n")
    program.chmod(0o755)
    tmp_path.chmod(0o755)
    served = start_superd(
        f"""
        [service.x]
        plugin = "exec"
        user = "root"
        listen = "tcp://127.0.0.1:0"
        options = {{ command = "{program}" }}
        """
        if os.geteuid() == 0
        else f"""
        [service.x]
        plugin = "exec"
        listen = "tcp://127.0.0.1:0"
        options = {{ command = "{program}" }}
        """
    )
    assert output(served, "x") == "fine\n"
    program.unlink()
    for _ in range(5):
        with served.connect("x") as client:
            assert receive_to_end(client)[0] == b""
    served.wait_for_log(r"cannot run .*/program: No such file or directory \(exit 127\)")
    assert served.counts("x")["errors"] == 5
    with served.connect("x") as sixth:
        until(lambda: served.counts("x")["accepted"] >= 6, "the closing of five connections")
        assert is_open(sixth) or served.counts("x")["accepted"] == 7


def test_at_the_end_of_a_drain_programs_and_their_children_are_ended(
    start_superd: Start,
) -> None:
    served = start_superd(
        """
        [daemon]
        drain-timeout = "300ms"

        [service.family]
        plugin = "exec"
        listen = "tcp://127.0.0.1:0"
        options = { command = ["sh", "-c", "trap '' TERM; sleep 600 & echo $! $$; wait; sleep 9"] }
        """
    )
    with served.connect("family") as client:
        pids = [int(word) for word in client.makefile().readline().split()]
        assert len(pids) == 2
        served.signal(signal.SIGTERM)
        assert served.wait() == 0
        until(lambda: not any(map(is_alive, pids)), "the end of both processes")
        client.settimeout(EVENT_TIMEOUT)
        assert client.recv(1) == b""


def test_a_wait_program_that_serves_one_client_at_a_time_is_not_paused(
    start_superd: Start,
) -> None:
    served = start_superd(
        f"""
        [service.single]
        plugin = "exec"
        listen = "tcp://127.0.0.1:0"
        wait = true
        options = {{ command = ["perl", "-e", '{SINGLE}'] }}
        """
    )
    for number in range(1, 13):
        with served.connect("single") as client:
            assert receive_all(client) == b"hello"
        until(lambda: not children(served.workers()[0]), "the end of the program")
        time.sleep(0.15)  # clients connect one after the other
        assert served.counts("single")["accepted"] == number
    assert "pauses" not in served.log()


def test_a_wait_program_that_never_serves_its_client_is_paused(
    start_superd: Start,
) -> None:
    served = start_superd(
        """
        [service.x]
        plugin = "exec"
        listen = "tcp://127.0.0.1:0"
        wait = true
        options = { command = "true" }
        """
    )
    with served.connect("x") as client:
        served.wait_for_log(r"it ended right after its start 10 times in a row; .* again in 10 s")
        assert served.counts("x")["accepted"] == 10
        assert is_open(client)


def test_wait_is_an_error_for_a_plugin_that_cannot_have_the_listener(tmp_path: Path) -> None:
    toml = '[service.x]\nplugin = "echo"\nwait = true\nlisten = "tcp://127.0.0.1:0"\n'
    superd = Superd(tmp_path, toml)
    superd.write()
    done = superd.run("run")
    assert done.returncode == 78
    assert (
        "service.x.wait: plugin echo cannot have the listening socket; remove wait" in done.stderr
    )
