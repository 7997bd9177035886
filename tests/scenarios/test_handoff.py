"""Programs that get the listening or datagram socket itself (`wait = true`): how many run, and when
superd ends them.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import connect_unix
from tests.support.harness import (
    EVENT_TIMEOUT,
    Superd,
    ask_udp,
    failed_start,
    is_alive,
    receive_all,
    until,
)
from tests.support.ports import free_port

# Each answers every client with its process ID, and never ends by itself.
ACCEPTS = r"use Socket; while (accept(C, STDIN)) { syswrite C, $$; close C }"
RECEIVES = r"while (defined($p = recv STDIN, $d, 65536, 0)) { send STDOUT, $$, 0, $p }"
OTHER_SERVER = """
import socket, time
with socket.create_server(("127.0.0.1", 0)):
    print("listening", flush=True)
    time.sleep(600)
"""

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


def reload_with(served: Superd, old: str, new: str) -> None:
    """Change the configuration's file, and reload."""
    text = served.file.read_text()
    assert old in text
    served.file.write_text(text.replace(old, new))
    done = served.run("reload")
    assert done.returncode == 0, done.stderr


ONE = f"""
[daemon]
drain-timeout = "1h"
workers = 2

[service.one]
plugin = "exec"
wait = true
listen = "LISTEN"
options = {{ command = ["perl", "-e", '{ACCEPTS}'] }}

[service.other]
plugin = "daytime"
listen = "tcp://127.0.0.1:0"
"""


@pytest.fixture
def one(start_superd: Start) -> Superd:
    """A superd whose service `one` has a program on a fixed port."""
    return start_superd(ONE.replace("LISTEN", f"tcp://127.0.0.1:{free_port()}"))


def test_a_disabled_service_is_served_no_more_and_can_be_enabled_at_once(one: Superd) -> None:
    before = 0
    for _ in range(3):
        pid = program(one, "one")
        assert pid != before
        assert one.run("disable", "one").returncode == 0
        assert not is_alive(pid)
        with pytest.raises(ConnectionRefusedError):
            one.connect("one")
        done = one.run("enable", "one")
        assert done.returncode == 0, done.stderr
        before = pid


def test_a_datagram_program_is_ended_with_its_service_also_without_wait(
    start_superd: Start,
) -> None:
    toml = ONE.replace("LISTEN", f"udp://127.0.0.1:{free_port()}")
    served = start_superd(toml.replace(ACCEPTS, RECEIVES).replace("wait = true\n", ""))
    for _ in range(2):
        pid = int(ask_udp(served.address("one", "udp"), b"x"))
        assert served.run("disable", "one").returncode == 0
        assert not is_alive(pid)
        done = served.run("enable", "one")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "key", ['deny = "192.0.2.1"', "backlog = 100", "nice = 1", 'record = ["closed"]']
)
def test_a_changed_entry_ends_its_program_and_pending_clients_get_the_next(
    one: Superd, key: str
) -> None:
    pid = program(one, "one")
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state(pid) == "T", "the program to stop")
    with one.connect("one") as pending:
        reload_with(one, "wait = true\n", f"wait = true\n{key}\n")
        assert not is_alive(pid)
        assert pid_from(pending) == program(one, "one") != pid
    assert "successor" not in one.log()


def test_an_unchanged_entry_keeps_its_program_until_it_changes(one: Superd) -> None:
    pid = program(one, "one")
    for number in range(3):
        reload_with(one, 'plugin = "daytime"\n', f'plugin = "daytime"\nbacklog = {number + 1}\n')
        one.file.write_text(one.file.read_text().replace(f"backlog = {number + 1}\n", ""))
        assert program(one, "one") == pid
    assert one.run("upgrade").returncode == 0
    assert program(one, "one") == pid
    text = one.file.read_text()
    one.file.write_text(text.replace("wait = true\n", "wait = true\nbacklog = 7\n"))
    done = one.run("upgrade")
    assert done.returncode == 0, done.stderr
    assert not is_alive(pid)
    assert program(one, "one") != pid


def test_a_process_that_a_program_has_left_with_the_listener_is_ended_with_the_service(
    start_superd: Start,
) -> None:
    leaves = 'use POSIX "setsid"; exit if fork; setsid; ' + ACCEPTS
    toml = ONE.replace("LISTEN", f"tcp://127.0.0.1:{free_port()}").replace(ACCEPTS, leaves)
    served = start_superd(toml)
    pid = program(served, "one")
    assert served.run("disable", "one").returncode == 0
    until(lambda: not is_alive(pid), "the end of the process")
    assert served.run("enable", "one").returncode == 0


def test_superd_stops_without_waiting_for_an_idle_program(one: Superd) -> None:
    pid = program(one, "one")
    one.signal(signal.SIGTERM)
    assert one.wait() == 0
    assert not is_alive(pid)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def worker_of(served: Superd) -> int:
    """Return the worker that has started a program for service `one`."""
    [row] = served.answer("connections", service="one")["connections"]
    worker: int = row["worker"]
    return worker


def test_after_the_end_of_a_worker_its_successor_serves_and_the_program_is_ended(
    one: Superd,
) -> None:
    pid = program(one, "one")
    worker = worker_of(one)
    os.kill(worker, signal.SIGKILL)
    until(lambda: not is_alive(pid), "the end of the program")
    one.wait_for_log(rf"process {pid} has a listener of superd; superd ends it")
    assert program(one, "one") != pid
    one.signal(signal.SIGTERM)
    assert one.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        one.connect("one")


def kill_all(served: Superd, *workers: int) -> None:
    """Kill the master and some workers, so that they cannot end anything."""
    for victim in (served.pid, *workers):
        os.kill(victim, signal.SIGKILL)
    served.wait()
    assert served.process is not None
    assert served.process.stdout is not None
    served.process.stdout.close()


@pytest.mark.parametrize("transport", ["udp", "unix", "unixgram", "tcp without wait"])
def test_a_start_finds_the_program_of_an_earlier_superd_at_any_address(
    start_superd: Start, tmp_path: Path, transport: str
) -> None:
    toml = toml_in(tmp_path)
    for _ in range(3):
        toml = toml.replace("127.0.0.1:0", f"127.0.0.1:{free_port()}", 1)
    served = start_superd(toml)
    pids = {
        "udp": int(ask_udp(served.address("datagrams", "udp"), b"x")),
        "unix": pid_from(connect_unix(tmp_path / "streams")),
        "tcp without wait": program(served, "streams"),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.settimeout(EVENT_TIMEOUT)
        client.bind(str(tmp_path / "client"))
        client.sendto(b"x", str(tmp_path / "datagrams"))
        pids["unixgram"] = int(client.recv(100))
    kill_all(served, *served.workers())
    if transport == "tcp without wait":
        served.toml = served.toml.replace("wait = true", "wait = false")
    served.start()
    assert not is_alive(pids[transport])


@pytest.mark.root
@pytest.mark.tool("setpriv")
@pytest.mark.parametrize("with_workers", [False, True])
@pytest.mark.parametrize("wrapper", [(), ("setpriv", "--bounding-set", "-sys_ptrace")])
def test_after_a_kill_of_superd_the_next_start_has_the_address(
    start_superd: Start, *, with_workers: bool, wrapper: tuple[str, ...]
) -> None:
    toml = ONE.replace("LISTEN", f"tcp://127.0.0.1:{free_port()}")
    served = start_superd(toml, *wrapper)
    pid = program(served, "one")
    workers = served.workers() if with_workers else []
    kill_all(served, *workers)
    served.start(*wrapper)
    assert not is_alive(pid)
    assert program(served, "one") != pid
    if with_workers:
        assert f"process {pid} has a listener of an earlier superd; superd ends it" in served.log()


@pytest.mark.root
@pytest.mark.tool("setpriv")
def test_a_worker_that_dies_is_succeeded_also_where_superd_sees_no_other_users_processes(
    start_superd: Start,
) -> None:
    toml = ONE.replace("LISTEN", f"tcp://127.0.0.1:{free_port()}")
    served = start_superd(toml, "setpriv", "--bounding-set", "-sys_ptrace")
    pid = program(served, "one")
    os.kill(worker_of(served), signal.SIGKILL)
    until(lambda: not is_alive(pid), "the end of the program")
    assert program(served, "one") != pid


def test_a_start_ends_no_process_that_superd_has_not_started(one: Superd) -> None:
    """Neither one that has the address, nor one with the variable that has another."""
    marked = {**os.environ, "SUPERD_HANDED_BY": str(one.file)}
    host, port = one.address("one")
    one.signal(signal.SIGTERM)
    assert one.wait() == 0
    elsewhere = [sys.executable, "-c", OTHER_SERVER]
    with (
        socket.create_server((host, port)),
        subprocess.Popen(elsewhere, env=marked, stdout=subprocess.PIPE) as other,
    ):
        assert other.stdout is not None
        assert other.stdout.readline() == b"listening\n"
        try:
            toml = one.toml.replace("[daemon]", '[daemon]\non-bind-failure = "stop"')
            code, error = failed_start(one.directory, toml)
            assert other.poll() is None
        finally:
            other.kill()
    assert code == 69
    assert f"cannot listen on tcp://{host}:{port}: the address is in use" in error


def is_dropped(address: tuple[str, int], source: str) -> bool:
    """Return whether the kernel drops the packets with which a source begins a connection. Over
    loopback the connection is established, or refused, when connect(2) returns.
    """
    with socket.socket() as client:
        client.bind((source, 0))
        client.setblocking(False)
        assert client.connect_ex(address) == errno.EINPROGRESS
        return not select.select([], [client], [], 0)[1]


def test_a_ban_holds_where_a_program_accepts_and_ends_with_unban(one: Superd) -> None:
    address = one.address("one")
    with one.connect("one", "127.0.0.2") as before:
        assert one.run("ban", "127.0.0.2").returncode == 0
        assert pid_from(before)  # its connection continues
    assert is_dropped(address, "127.0.0.2")
    assert pid_from(one.connect("one", "127.0.0.3"))
    reload_with(one, "wait = true\n", "wait = true\nbacklog = 100\n")
    assert is_dropped(address, "127.0.0.2")
    assert one.run("disable", "one").returncode == 0
    assert one.run("enable", "one").returncode == 0
    assert is_dropped(address, "127.0.0.2")
    assert one.run("upgrade").returncode == 0
    assert is_dropped(address, "127.0.0.2")
    assert one.run("unban", "127.0.0.2").returncode == 0
    assert pid_from(one.connect("one", "127.0.0.2"))


def test_the_datagrams_of_a_banned_source_do_not_reach_a_running_program(
    start_superd: Start, tmp_path: Path
) -> None:
    served = start_superd(toml_in(tmp_path))
    address = served.address("datagrams", "udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.2", 0))
        client.settimeout(EVENT_TIMEOUT)
        client.sendto(b"x", address)
        pid = int(client.recv(100))
        assert served.run("ban", "127.0.0.2").returncode == 0
        client.sendto(b"x", address)
        assert int(ask_udp(address, b"x")) == pid
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(100)


def test_without_wait_superd_itself_refuses_banned_clients_again(one: Superd) -> None:
    assert one.run("ban", "127.0.0.2").returncode == 0
    assert is_dropped(one.address("one"), "127.0.0.2")
    reload_with(one, 'plugin = "exec"\nwait = true\n', 'plugin = "exec"\n')
    with one.connect("one", "127.0.0.2") as client:
        assert client.recv(1) == b""
    assert one.counts("one")["refused-banned"] == 1


def test_rules_that_cannot_apply_to_a_programs_own_clients_are_named(
    start_superd: Start,
) -> None:
    toml = ONE.replace("LISTEN", "tcp://127.0.0.1:0").replace("wait =", 'deny = "::1"\nwait =')
    served = start_superd(toml)
    served.wait_for_log("with wait = true the program accepts its clients itself, .*: one\n")
