"""`superd start`, `stop` and `status`: the life of a daemon."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from superd.cli.main import main
from superd.process.isolated import run_isolated
from tests.cli.conftest import Say
from tests.support import proc
from tests.support.clients import connect_tcp
from tests.support.daemons import ECHO, Configure, echo_with_log, run_in_own_mounts, stop_daemon
from tests.support.harness import (
    EVENT_TIMEOUT,
    Superd,
    command,
    exchange,
    is_alive,
    until,
)
from tests.support.ports import free_port


def test_a_daemon_serves_once_start_returns_and_has_ended_once_stop_returns(
    configured: Configure, tmp_path: Path
) -> None:
    port, path = free_port(), tmp_path / "echo.sock"
    listen = f'["tcp://127.0.0.1:{port}", "unix://{path}"]'
    superd = configured(echo_with_log(port).replace(f'"tcp://127.0.0.1:{port}"', listen))

    started = superd.run("start")
    assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
    assert exchange(connect_tcp(("127.0.0.1", port)), b"hello") == b"hello"

    master = superd.pid
    assert proc.session(master) not in (master, os.getsid(0))  # its own, but it does not lead it
    assert proc.terminal(master) == 0
    status = proc.threads(master)
    assert len(status) == 1
    assert status[0]["Umask"] == "0022"
    assert os.readlink(f"/proc/{master}/cwd") == "/"
    found = {one.number: one.target for one in proc.descriptors(master)}
    assert [found[number] for number in range(3)] == ["/dev/null"] * 3

    workers = proc.children(master)
    assert len(workers) == 1
    stopped = superd.run("stop")
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, "", "")
    assert not [pid for pid in (master, *workers) if is_alive(pid)]
    left = {entry.name for entry in superd.directory.iterdir()}
    assert left == {"superd.toml", "log"}
    assert not path.exists()
    with pytest.raises(ConnectionRefusedError):
        connect_tcp(("127.0.0.1", port))
    assert superd.run("status").returncode == 3
    again = superd.run("stop")
    assert again.returncode == 1
    assert again.stderr == f"superd: no superd runs with the pid file {superd.directory}/pid\n"


@pytest.mark.parametrize(
    "number",
    [4, pytest.param(20, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.soak)],
)
def test_no_client_is_refused_after_start_returns(configured: Configure, number: int) -> None:
    def start_and_connect(superd: Superd, port: int, times: int) -> int:
        for _ in range(times):
            assert superd.run("start").returncode == 0
            assert exchange(connect_tcp(("127.0.0.1", port)), b"hello") == b"hello"
            stop_daemon(superd)
        return times

    ports = [free_port() for _ in range(4)]
    daemons = [configured(echo_with_log(port)) for port in ports]
    with ThreadPoolExecutor(len(daemons)) as pool:
        done = pool.map(start_and_connect, daemons, ports, [number // 4] * 4)
        assert sum(done) == number


def test_a_second_daemon_is_refused_and_changes_nothing(configured: Configure) -> None:
    superd = configured(echo_with_log(free_port()))
    assert superd.run("start").returncode == 0
    master, file = superd.pid, superd.directory / "pid"
    inode = file.stat().st_ino

    second = superd.run("start")
    assert second.returncode == 69
    message = f"superd: another superd (process {master}) runs with the pid file {file}\n"
    assert second.stderr == message  # and not that it has all the addresses
    assert (superd.pid, file.stat().st_ino) == (master, inode)

    file.rename(superd.directory / "elsewhere")  # no lock to find any more, but the socket
    superd.file.write_text(
        superd.file.read_text().replace('"tcp://127.0.0.1:', '"tcp://127.0.0.2:')
    )
    third = superd.run("start")
    assert third.returncode == 69
    assert "control socket: cannot listen on" in third.stderr
    (superd.directory / "elsewhere").rename(file)

    (address,) = superd.answer()["services"][0]["listen"]
    port = int(address.rpartition(":")[2])
    assert exchange(connect_tcp(("127.0.0.1", port)), b"hello") == b"hello"


def test_no_socket_gets_the_number_of_a_standard_descriptor(configured: Configure) -> None:
    superd = configured(echo_with_log(free_port()))
    line = [*command("start", "-c", str(superd.file))]
    closed = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *line], check=False)
    assert closed.returncode == 0
    for pid in (superd.pid, *proc.children(superd.pid)):
        found = {one.number: one.target for one in proc.descriptors(pid)}
        targets = [found[number].partition(":")[0] for number in range(3)]
        output = "/dev/null" if pid == superd.pid else "pipe"  # a worker's leads to the master
        assert targets == ["/dev/null", output, output]


@contextlib.contextmanager
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process unrelated to superd."""
    process = subprocess.Popen(["sleep", "60"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_number_in_a_stale_pid_file_is_never_signalled(
    configured: Configure, superd_here: Say
) -> None:
    superd = configured(echo_with_log(0))
    file = superd.directory / "pid"
    with bystander() as victim:
        file.write_text(f"{victim.pid}\n")
        assert superd_here("stop", "-c", str(superd.file)).returncode == 1
        assert superd.run("start").returncode == 0
        assert superd.pid != victim.pid
        stop_daemon(superd)
        assert victim.poll() is None


def test_a_killed_master_does_not_disturb_the_next_start(
    configured: Configure, tmp_path: Path
) -> None:
    port = free_port()
    listen = f'["tcp://127.0.0.1:{port}", "unix://{tmp_path}/echo.sock"]'
    superd = configured(echo_with_log(port).replace(f'"tcp://127.0.0.1:{port}"', listen))
    assert superd.run("start").returncode == 0
    workers = proc.children(superd.pid)
    os.kill(superd.pid, signal.SIGKILL)
    until(lambda: not [pid for pid in workers if is_alive(pid)], "the end of its workers")
    assert (superd.directory / "pid").exists()
    assert superd.run("start").returncode == 0
    assert exchange(connect_tcp(("127.0.0.1", port)), b"hello") == b"hello"


def test_stop_returns_when_the_last_connection_has_finished(
    configured: Configure, superd_here: Say
) -> None:
    port = free_port()
    superd = configured(echo_with_log(port))
    assert superd.run("start").returncode == 0
    client = connect_tcp(("127.0.0.1", port))
    client.sendall(b"a")
    assert client.recv(1) == b"a"
    stopping = subprocess.Popen(command("stop", "-c", str(superd.file)))
    until(lambda: superd.answer()["state"] == "draining", "the drain")
    status = superd_here("status", "-c", str(superd.file))
    assert (status.returncode, "is draining since" in status.stdout) == (0, True)
    assert exchange(client, b"b") == b"b"
    assert stopping.wait(EVENT_TIMEOUT) == 0
    assert not (superd.directory / "pid").exists()


def test_status_is_available_as_text_and_as_json(configured: Configure, superd_here: Say) -> None:
    superd = configured(echo_with_log(free_port()))
    of_file = ("-c", str(superd.file))
    assert superd_here("status", "--json", *of_file).stdout == '{"state": "stopped"}\n'
    assert superd.run("start").returncode == 0
    text = superd_here("status", *of_file).stdout
    answer = json.loads(superd_here("status", "--json", *of_file).stdout)
    assert answer["state"] == "serving"
    assert answer["pid"] == superd.pid
    assert answer["configuration"] == str(superd.file)
    (worker,) = answer["workers"]
    (service,) = answer["services"]
    assert f"is serving since {time.strftime('%Y-')}" in text
    assert re.search(rf"^{worker['pid']} +{worker['pool']} +ready +1 ", text, re.MULTILINE)
    assert re.search(rf"^echo .* {re.escape(service['listen'][0])}$", text, re.MULTILINE)


def test_a_daemon_is_found_at_its_default_paths_when_its_file_is_no_longer_toml(
    configured: Configure, superd_here: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    superd = configured("")
    for variable in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY"):
        monkeypatch.setenv(variable, str(superd.directory))
    of_file = ("-c", str(superd.file))
    superd.file.write_text(echo_with_log(0))
    assert superd_here("status", *of_file).returncode == 3
    assert superd.run("start").returncode == 0
    try:
        superd.file.write_text("[daemon\n")
        assert " is serving since " in superd_here("status", *of_file).stdout
        message = f"{superd.file}:1:8: not TOML: expected ']' at the end of a table declaration\n"
        done = superd_here("reload", *of_file)
        assert (done.returncode, done.stderr) == (78, message)
        message = "service.echo: it is the last service that is enabled\n"
        done = superd_here("disable", "echo", *of_file)
        assert (done.returncode, done.stderr) == (78, message)
        superd.file.unlink()
        assert superd_here("log-level", *of_file).stdout == "info\n"
    finally:
        stopped = superd_here("stop", *of_file)
    assert (stopped.returncode, stopped.stderr) == (0, "")
    done = superd_here("status", *of_file)
    assert (done.returncode, done.stderr) == (78, f"{superd.file}: No such file or directory\n")


def test_status_answers_while_a_worker_is_out_of_descriptors(configured: Configure) -> None:
    port = free_port()
    superd = configured(echo_with_log(port) + "rlimits = { nofile = 24 }\n")
    assert superd.run("start").returncode == 0
    with contextlib.ExitStack() as clients:
        for _ in range(40):
            clients.enter_context(connect_tcp(("127.0.0.1", port)))
        until(lambda: "EMFILE" in superd.log(), "a worker without descriptors")
        assert superd.answer()["state"] == "serving"
    assert exchange(connect_tcp(("127.0.0.1", port)), b"hello") == b"hello"


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can read."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.root
def test_another_user_can_neither_stop_the_daemon_nor_see_its_status(open_directory: Path) -> None:
    superd = Superd(open_directory, echo_with_log(0))
    superd.write().chmod(0o644)
    assert superd.run("start").returncode == 0

    def as_another_user(name: str) -> list[object]:
        os.setresgid(proc.NOBODY, proc.NOBODY, proc.NOBODY)
        os.setresuid(proc.NOBODY, proc.NOBODY, proc.NOBODY)
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            code = main([name, "-c", str(superd.file)])
        return [code, printed.getvalue()]

    try:
        outcomes = run_isolated(
            {"stop": lambda: as_another_user("stop"), "status": lambda: as_another_user("status")}
        )
        message = f"superd: process {superd.pid} belongs to another user\n"
        assert outcomes["stop"].result == [77, message]
        message = f"superd: control socket {open_directory}/control: it belongs to another user\n"
        assert outcomes["status"].result == [77, message]
        assert is_alive(superd.pid)
    finally:
        stop_daemon(superd)


@pytest.mark.root
@pytest.mark.tool("unshare", "mount")
def test_two_configurations_of_one_user_run_side_by_side(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(ECHO.format(port=0))
    script = """
        set -e
        for place in /run /var/lib; do mount -t tmpfs tmpfs $place; done
        for name in one two; do "$@" start -c $name.toml; done
        ls /run/superd
        cat /run/superd/*.pid
        "$@" stop -c one.toml
        "$@" status -c two.toml | head -n 1
        "$@" stop -c two.toml
        ls /run/superd
    """
    done = run_in_own_mounts(script, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:4] == ["one.pid", "one.sock", "two.pid", "two.sock"]
    assert len(set(lines[4:6])) == 2
    assert lines[6].endswith(f"process {lines[5]}")
    assert len(lines) == 7  # nothing is left in the end


def test_a_daemon_without_a_log_prints_a_notice(configured: Configure) -> None:
    superd = configured(ECHO.format(port=0))
    done = superd.run("start")
    assert done.returncode == 0
    message = "superd: there is no syslog, so nothing is logged; name a file in [daemon] log\n"
    assert done.stderr == ("" if Path("/dev/log").exists() else message)
