"""Addresses that cannot be bound at the start: the other services are served, and these are tried
again until they are bound.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.scenarios.test_upgrade import upgrade
from tests.support.clients import connect_tcp, connect_unix
from tests.support.dns import FILES, name_server
from tests.support.harness import (
    EVENT_TIMEOUT,
    Superd,
    ask_udp,
    command,
    exchange,
    failed_start,
    make_plugin,
    superd,
    until,
)
from tests.support.namespaces import Namespace, join, network_namespace
from tests.support.passing import NotifySocket
from tests.support.ports import free_port
from tests.support.scrapes import get_page, scrape_metrics

ECHO = '[service.{name}]\nplugin = "echo"\nlisten = "{address}"\n'
FREE = ECHO.format(name="free", address="tcp://127.0.0.1:0")
METRICS = '[service.metrics]\nplugin = "metrics"\nlisten = "tcp://127.0.0.1:0"\n'
ANSWER = """
    from superd.plugin import Service, hookimpl

    class Answer(Service):
        name = "answer"

        def stream(self, conn):
            conn.send(conn.read(100))

    @hookimpl
    def superd_services():
        return [Answer]
"""
STOPS = '[daemon]\non-bind-failure = "stop"\n'


def late(address: str, more: str = "") -> str:
    return ECHO.format(name="late", address=address) + more


@contextlib.contextmanager
def taken(port: int) -> Iterator[None]:
    """Have a port for tcp and udp."""
    with (
        socket.create_server(("127.0.0.1", port)),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.bind(("127.0.0.1", port))
        yield


def pending(served: Superd) -> list[str]:
    """Return the addresses that superd could not bind yet."""
    return [one["addresses"] for one in served.answer("outline")["pending"]]


def wait_until_bound(served: Superd) -> None:
    until(lambda: not pending(served), "all addresses to be bound")


def is_echoing(port: int) -> bool:
    return exchange(connect_tcp(("127.0.0.1", port)), b"hello") == b"hello"


def test_a_port_in_use_keeps_no_other_service_from_being_served(start_superd: Start) -> None:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    with taken(port):
        served = start_superd(late(address) + FREE)
        before = served.workers()
        session = served.connect("free")
        session.sendall(b"one")
        assert session.recv(3) == b"one"
    wait_until_bound(served)
    assert is_echoing(port)
    session.sendall(b"two")
    assert session.recv(3) == b"two", "a connection was lost"
    session.close()
    assert served.workers() == before
    errors = [line for line in served.log().splitlines() if " error: " in line]
    where = f"{served.file}:8:10: service.late.listen: cannot listen on {address}"
    cause = f"the address is in use by process {os.getpid()} ("
    assert len(errors) == 1, "an attempt is not logged"
    assert f"{where}: {cause}" in errors[0]
    assert errors[0].endswith("; it is tried again")
    assert f"now listens on {address}" in served.log()


def test_every_report_shows_an_address_that_is_not_bound_yet(
    start_superd: Start, tmp_path: Path
) -> None:
    supervisor = NotifySocket(tmp_path / "notify")
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    with taken(port):
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        served = start_superd(late(address) + METRICS, env=env)
        text = f"does not listen on {address} yet: the address is in use by process {os.getpid()}"
        assert text in served.run("status").stdout
        assert text in served.run("explain", "late", "192.0.2.1").stderr
        assert text not in served.run("explain", "metrics", "192.0.2.1").stderr
        (shown,) = served.status()["pending"]
        assert (shown["service"], shown["addresses"]) == ("late", address)
        status, page = get_page(served, "/readyz")
        assert (status, text in page) == (503, True)
        scrape = scrape_metrics(served)
        assert scrape("service_pending_addresses", service="late") == 1
        assert scrape("service_pending_addresses", service="metrics") == 0
        assert scrape("ready") == 0
        state = supervisor.wait_for("READY")["STATUS"]
        assert f"addresses that are not bound yet: 1, such as service.late on {address}" in state
    wait_until_bound(served)
    assert "yet" not in supervisor.wait_for("STATUS")["STATUS"]
    assert get_page(served, "/readyz")[0] == 200
    until(  # metrics are collected a few times a second only
        lambda: scrape_metrics(served)("service_pending_addresses", service="late") == 0,
        "the metric of pending addresses to be 0",
    )
    assert "yet" not in served.run("status").stdout
    supervisor.close()


@pytest.mark.parametrize(
    "keys",
    ["", 'model = "thread"\n', 'model = "fork"\n', 'model = "prefork"\nprocesses = 2\n'],
    ids=["loop", "thread", "fork", "prefork"],
)
def test_all_workers_serve_an_address_that_is_bound_late(
    start_superd: Start, tmp_path: Path, keys: str
) -> None:
    port = free_port()
    plugin = "echo" if not keys else "answer"
    env = make_plugin(tmp_path / "plugins", "answer", ANSWER)
    toml = "[daemon]\nworkers = 2\n" + FREE + late(f"tcp://127.0.0.1:{port}", keys)
    toml = toml.replace('[service.late]\nplugin = "echo"', f'[service.late]\nplugin = "{plugin}"')
    with taken(port):
        served = start_superd(toml, env=env)
    wait_until_bound(served)
    pools = {worker["pool"] for worker in served.answer()["workers"]}
    for worker in served.workers():
        others = [pid for pid in served.workers() if pid != worker]
        for pid in others if len(pools) == 1 else ():
            os.kill(pid, signal.SIGSTOP)
        try:
            with connect_tcp(("127.0.0.1", port)) as client:
                client.sendall(b"hello")
                assert client.recv(100) == b"hello"
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)


def test_datagrams_and_unix_sockets_are_served_late(start_superd: Start, tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "missing" / "echo"
    listen = f'udp://127.0.0.1:{port}", "unix://{path}'
    toml = late(listen).replace("listen = ", "listen = [").replace('echo"\n', 'echo"]\n')
    toml = toml.replace('plugin = "echo"]', 'plugin = "echo"')
    with taken(port):
        served = start_superd(FREE + toml)
        assert len(pending(served)) == 2
    path.parent.mkdir()
    wait_until_bound(served)
    assert ask_udp(("127.0.0.1", port), b"hello") == b"hello"
    assert exchange(connect_unix(path), b"hello") == b"hello"


def test_a_program_that_accepts_itself_gets_an_address_that_is_bound_late(
    start_superd: Start,
) -> None:
    port = free_port()
    code = "import socket; s = socket.socket(fileno=0); c, _ = s.accept(); c.sendall(b'hello')"
    options = f'wait = true\noptions = {{ command = ["python3", "-c", "{code}"] }}\n'
    toml = late(f"tcp://127.0.0.1:{port}", options).replace('"echo"', '"exec"')
    with taken(port):
        served = start_superd(FREE + toml)
    wait_until_bound(served)
    with connect_tcp(("127.0.0.1", port)) as client:
        assert client.recv(100) == b"hello"


def test_pending_addresses_survive_reload_disable_and_upgrade(start_superd: Start) -> None:
    port, other = free_port(), free_port()
    address = f"tcp://127.0.0.1:{port}"
    with taken(port):
        served = start_superd(late(address) + FREE)
        assert served.run("reload").returncode == 0
        assert pending(served) == [address]
        served.toml += ECHO.format(name="more", address=f"tcp://127.0.0.1:{other}")
        served.write()
        assert served.run("reload").stdout == "more: added\nunchanged: 2 services\n"
        assert is_echoing(other)
        assert served.run("disable", "late").returncode == 0
        assert pending(served) == []
        assert served.run("disable", "more").returncode == 0
        upgrade(served)
    assert served.run("enable", "late").returncode == 0
    assert is_echoing(port)


def test_an_upgrade_hands_pending_addresses_on(start_superd: Start) -> None:
    port = free_port()
    with taken(port):
        served = start_superd(late(f"tcp://127.0.0.1:{port}") + FREE)
        upgrade(served)
        (shown,) = served.answer()["pending"]
        assert "the address is in use by process" in shown["why"]
    wait_until_bound(served)
    assert is_echoing(port)


def test_a_worker_that_is_replaced_serves_what_was_bound_late(start_superd: Start) -> None:
    port = free_port()
    with taken(port):
        served = start_superd(late(f"tcp://127.0.0.1:{port}") + FREE)
    wait_until_bound(served)
    (worker,) = served.workers()
    os.kill(worker, signal.SIGKILL)
    until(lambda: served.workers() not in ([worker], []), "another worker")
    assert is_echoing(port)


def test_a_reload_that_adds_an_address_in_use_is_refused_whatever_is_pending(
    start_superd: Start,
) -> None:
    port, other = free_port(), free_port()
    with taken(port), taken(other):
        served = start_superd(late(f"tcp://127.0.0.1:{port}") + FREE)
        served.toml += ECHO.format(name="more", address=f"tcp://127.0.0.1:{other}")
        served.write()
        done = served.run("reload")
        assert done.returncode == 69
        assert f"service.more.listen: cannot listen on tcp://127.0.0.1:{other}: " in done.stderr
        assert "service.late" not in done.stderr
        assert served.answer()["generation"] == 1
    wait_until_bound(served)
    assert is_echoing(port)


def test_superd_ends_if_no_address_at_all_can_be_bound(tmp_path: Path) -> None:
    port = free_port()
    with taken(port):
        code, text = failed_start(tmp_path, late(f"tcp://127.0.0.1:{port}"))
    assert code == 69
    assert "the address is in use by process" in text


def test_superd_ends_at_the_first_failure_if_the_configuration_says_so(tmp_path: Path) -> None:
    port = free_port()
    with taken(port):
        code, text = failed_start(tmp_path, STOPS + late(f"tcp://127.0.0.1:{port}") + FREE)
    assert code == 69
    assert f"service.late.listen: cannot listen on tcp://127.0.0.1:{port}" in text


def test_what_cannot_pass_by_itself_keeps_no_other_service_from_being_served(
    start_superd: Start, tmp_path: Path
) -> None:
    path = tmp_path / "precious"
    path.write_text("precious")
    served = start_superd(late(f"unix://{path}") + FREE)
    assert exchange(served.connect("free"), b"x") == b"x"
    assert "the file there is not a socket; remove it" in served.log()
    assert path.read_text() == "precious"
    path.unlink()
    wait_until_bound(served)
    assert exchange(connect_unix(path), b"x") == b"x"


@pytest.fixture
def machine() -> Iterator[Namespace]:
    with network_namespace() as space:
        yield space


@pytest.mark.root
@pytest.mark.tool("ip")
def test_an_address_and_an_interface_that_appear_are_served(
    start_superd: Start, machine: Namespace
) -> None:
    toml = late("tcp://192.0.2.1:7") + FREE
    toml += ECHO.format(name="dev", address="tcp://*:8") + 'device = "wire"\n'
    toml += ECHO.format(name="zone", address="tcp://[fe80::7%wire]:9")
    served = start_superd(toml, *machine.wrapper)
    assert pending(served) == ["tcp://192.0.2.1:7", "tcp://*:8", "tcp://[fe80::7%wire]:9"]
    assert served.log().count('there is no network interface "wire"') == 2
    with network_namespace() as neighbour:
        join(machine, neighbour)
        machine.add_address("192.0.2.1/24", "wire")
        machine.add_address("fe80::7/64", "wire")
        wait_until_bound(served)
        with machine.inside():
            assert exchange(connect_tcp(("192.0.2.1", 7)), b"x") == b"x"
            assert exchange(connect_tcp(("fe80::7%wire", 9)), b"x") == b"x"


NAMED = late("tcp://me.example:7")


@pytest.mark.root
@pytest.mark.tool("ip")
def test_a_name_that_cannot_be_looked_up_now_is_tried_again(
    start_superd: Start, machine: Namespace
) -> None:
    with name_server(machine) as names:
        names.addresses[b"me.example"] = "127.0.0.7"
        names.is_silent = True
        served = start_superd(NAMED + FREE, *machine.wrapper)
        assert pending(served) == ["tcp://me.example:7"]
        assert "service.late.listen: cannot listen on tcp://me.example:7: cannot look up" in (
            served.log()
        )
        names.is_silent = False
        wait_until_bound(served)
        with machine.inside():
            assert exchange(connect_tcp(("127.0.0.7", 7)), b"x") == b"x"
        assert "now listens on tcp://127.0.0.7:7" in served.log()


@pytest.mark.root
@pytest.mark.tool("ip")
def test_a_reload_without_a_name_server_keeps_the_addresses_of_a_name(
    start_superd: Start, machine: Namespace
) -> None:
    with name_server(machine) as names:
        names.addresses[b"me.example"] = "127.0.0.7"
        served = start_superd(NAMED + FREE, *machine.wrapper)
        names.is_silent = True
        with machine.inside():
            session = connect_tcp(("127.0.0.7", 7))
        done = subprocess.run(
            [*machine.wrapper, *command("reload", "-c", str(served.file))],
            capture_output=True,
            text=True,
            timeout=2 * EVENT_TIMEOUT,
        )
        assert (done.returncode, done.stdout) == (0, "unchanged: 2 services\n")
        assert pending(served) == []
        questions = names.questions
        assert served.run("disable", "free").returncode == 0
        assert names.questions == questions, "a name was looked up"
        with machine.inside():
            assert exchange(session, b"x") == b"x"
            assert exchange(connect_tcp(("127.0.0.7", 7)), b"x") == b"x"


@pytest.mark.root
@pytest.mark.tool("ip")
@pytest.mark.parametrize(("is_silent", "code"), [(True, 75), (False, 78)])
def test_the_exit_code_tells_a_silent_name_server_from_a_wrong_name(
    machine: Namespace, tmp_path: Path, *, is_silent: bool, code: int
) -> None:
    daemon = Superd(tmp_path, NAMED)
    with name_server(machine) as names:
        names.is_silent = is_silent
        done = subprocess.run(
            [*machine.wrapper, *command("run", "-c", str(daemon.write()))],
            capture_output=True,
            text=True,
            timeout=2 * EVENT_TIMEOUT,
        )
        checked = subprocess.run(
            [*machine.wrapper, *command("check", str(daemon.file))],
            capture_output=True,
            text=True,
            timeout=2 * EVENT_TIMEOUT,
        )
    why = "cannot look up me.example now" if is_silent else "there is no host me.example"
    assert done.returncode == code
    assert f"service.late.listen: cannot listen on tcp://me.example:7: {why}" in done.stderr
    assert checked.returncode == (0 if is_silent else 78)
    assert f"service.late.listen: {why}" in checked.stderr


@pytest.mark.root
@pytest.mark.tool("ip")
def test_a_name_needs_one_address_that_the_machine_has(
    start_superd: Start, machine: Namespace
) -> None:
    machine.sysctl("net.ipv6.conf.all.disable_ipv6=1")
    hosts = "127.0.0.1 both.example\n::1 both.example\n"
    files = {**FILES, "hosts": hosts, "nsswitch.conf": "hosts: files\n"}
    with name_server(machine, files):
        listen = 'tcp://both.example:7", "udp://both.example:7'
        toml = ECHO.format(name="d", address=listen).replace("listen = ", "listen = [")
        served = start_superd(toml.removesuffix("\n") + "]\n", *machine.wrapper)
        with machine.inside():
            assert exchange(connect_tcp(("127.0.0.1", 7)), b"x") == b"x"
            assert ask_udp(("127.0.0.1", 7), b"x") == b"x"
        text = "service.d: listens on tcp://both.example:7 without tcp://[::1]:7: this machine does"
        assert text in served.log()
        assert pending(served) == []


def test_one_cause_is_one_line_for_all_ports_of_a_range(tmp_path: Path) -> None:
    toml = (
        '[service.knocks]\nplugin = "sniffer"\ndevice = "nowhere0"\n'
        'listen = ["tcp://*:7001-7100", "udp://127.0.0.1:7001-7010"]\n'
    )
    done = superd("run", "-c", str(Superd(tmp_path, toml).write()))
    (line,) = done.stderr.splitlines()
    assert line == (
        f"superd: {tmp_path}/superd.toml:8:10: service.knocks.device: cannot listen on"
        " tcp://*:7001-7100 (100 ports), udp://127.0.0.1:7001-7010 (10 ports):"
        ' there is no network interface "nowhere0"'
    )
