"""`superd start` that fails: it prints the reason and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from superd.master.pidfile import holder
from tests.cli.conftest import Say
from tests.support.clients import connect_tcp
from tests.support.daemons import ECHO, Configure, echo_with_log
from tests.support.harness import (
    EVENT_TIMEOUT,
    Superd,
    command,
    exchange,
    is_alive,
    make_plugin,
    until,
)
from tests.support.ports import free_port


def test_start_names_the_address_in_use(configured: Configure) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = configured(echo_with_log(port)).run("start")
    assert done.returncode == 69
    assert done.stderr.startswith("superd: ")
    assert done.stderr.count("\n") == 1
    assert (
        f"superd.toml:10:10: service.echo.listen: cannot listen on tcp://127.0.0.1:{port}:"
        f" the address is in use by process {os.getpid()} (" in done.stderr
    )


def test_start_prints_the_mistakes_of_the_configuration(configured: Configure) -> None:
    superd = configured('[service.echo]\nplugin = "ecko"\nlisten = "tcp://127.0.0.1:0"\n')
    done = superd.run("start")
    assert done.returncode == 78
    assert f"{superd.file}:" in done.stderr
    assert 'did you mean "echo"' in done.stderr


@pytest.mark.root
@pytest.mark.tool("setpriv", "unshare")
def test_start_names_the_address_that_is_not_permitted(configured: Configure) -> None:
    superd = configured(echo_with_log(7).replace("127.0.0.1", "0.0.0.0"))
    without = ["unshare", "--net", "setpriv", "--bounding-set", "-net_bind_service"]
    done = subprocess.run(
        [*without, *command("start", "-c", str(superd.file))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 77
    assert "cannot listen on tcp://0.0.0.0:7: not permitted" in done.stderr


def test_start_names_the_log_that_cannot_be_opened(configured: Configure) -> None:
    superd = configured(echo_with_log(0).replace("./log", "nowhere/log"))
    done = superd.run("start")
    assert done.returncode == 1
    assert f"cannot log to {superd.directory}/nowhere/log: No such file" in done.stderr


# The rehearsal runs in a process of its own, so a worker tells itself apart by this file
ONLY_IN_THE_WORKER = """
    import os, pathlib, signal, time
    from superd.plugin import Service, hookimpl

    class Frail(Service):
        name = "frail"

        def prepare(self):
            rehearsed = pathlib.Path(os.environ["LANG"])
            if rehearsed.exists():
                {act}
            rehearsed.touch()

        async def stream(self, conn):
            conn.close()

    @hookimpl
    def superd_services():
        return [Frail]
"""


def frail(configured: Configure, tmp_path: Path, act: str, workers: int = 1) -> Superd:
    """Return a daemon with a plugin that runs `act` in its workers while they start."""
    env = make_plugin(tmp_path / "plugins", "frail", ONLY_IN_THE_WORKER.replace("{act}", act))
    env["LANG"] = str(tmp_path / "rehearsed")  # one of the few variables that workers keep
    toml = echo_with_log(0, f"workers = {workers}\n").replace('"echo"', '"frail"')
    return configured(toml, env=env)


@pytest.mark.parametrize(
    ("act", "code", "text"),
    [
        ("raise OSError(28, 'no room')", 1, "failed in prepare: no room"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 1, "was ended by SIGSEGV"),
    ],
    ids=["raises", "crashes"],
)
def test_start_prints_why_a_worker_cannot_start(
    configured: Configure, tmp_path: Path, act: str, code: int, text: str
) -> None:
    superd = frail(configured, tmp_path, act, workers=3)  # all of them at once
    done = superd.run("start")
    assert done.returncode == code
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert {entry.name for entry in superd.directory.iterdir()} == {"superd.toml", "log"}


@pytest.mark.soak
def test_start_gives_up_on_a_worker_that_is_never_ready(
    configured: Configure, tmp_path: Path
) -> None:
    done = frail(configured, tmp_path, "time.sleep(3600)").run("start")
    assert done.returncode == 1
    assert "was ended by SIGKILL: it was not ready within 30 s\n" in done.stderr


def test_an_interrupted_start_leaves_no_daemon_behind(
    configured: Configure, tmp_path: Path
) -> None:
    superd = frail(configured, tmp_path, "time.sleep(1)")
    caller = subprocess.Popen(
        command("start", "-c", str(superd.file)), env={**os.environ, **(superd.env or {})}
    )
    until(lambda: holder(superd.directory / "pid"), "a daemon that starts")
    master = superd.pid
    caller.send_signal(signal.SIGINT)
    assert caller.wait(EVENT_TIMEOUT) == 130
    until(lambda: not is_alive(master), "the end of the daemon")
    assert "the command that started superd ended before superd was ready" in superd.log()
    assert not (superd.directory / "pid").exists()


@pytest.mark.root
@pytest.mark.tool("unshare")
def test_process_1_does_not_go_into_the_background(configured: Configure) -> None:
    superd = configured(ECHO.format(port=0))
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *command("start", "-c", str(superd.file))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "use `superd run`" in done.stderr


def test_a_symbolic_link_as_pid_file_fails_the_start_and_is_not_followed(
    configured: Configure, tmp_path: Path
) -> None:
    superd = configured(echo_with_log(0))
    (tmp_path / "victim").write_text("precious")
    (superd.directory / "pid").symlink_to(tmp_path / "victim")
    done = superd.run("start")
    assert done.returncode == 1
    assert "is a symbolic link" in done.stderr
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_pid_file_that_cannot_be_written_is_named_and_removed(configured: Configure) -> None:
    superd = configured(echo_with_log(0))
    line = command("start", "-c", str(superd.file))
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *line],
        capture_output=True,
        text=True,
        check=False,
    )
    message = f"superd: pid file {superd.directory}/pid: File too large\n"
    assert (done.returncode, done.stderr) == (1, message)
    assert not (superd.directory / "pid").exists()


def test_a_broken_service_fails_the_start_but_not_the_other_services(
    configured: Configure, superd_here: Say, tmp_path: Path
) -> None:
    port = free_port()
    env = make_plugin(tmp_path / "plugins", "broken", "raise RuntimeError('broken')")
    more = '\n[service.bad]\nplugin = "broken"\nlisten = "tcp://127.0.0.1:0"\n'
    superd = configured(echo_with_log(port) + more, env=env)
    done = superd.run("start")
    assert done.returncode == 1
    assert "superd: service.bad is not served: plugin broken" in done.stderr
    assert exchange(connect_tcp(("127.0.0.1", port)), b"hello") == b"hello"
    assert "bad" in superd.answer()["broken"]
    assert "bad  not served: plugin broken" in superd_here("status", "-c", str(superd.file)).stdout


def test_start_prints_what_is_not_served_and_how_much_is(configured: Configure) -> None:
    port = free_port()
    late = ECHO.format(port=port).replace("service.echo", "service.late")
    served = configured(echo_with_log(free_port()) + late)
    with socket.create_server(("127.0.0.1", port)):
        done = served.run("start")
    first, last = done.stderr.splitlines()
    assert done.returncode == 1
    assert f"service.late.listen: cannot listen on tcp://127.0.0.1:{port}: " in first
    assert first.endswith("; it is tried again")
    assert last == f"superd: 1 of 2 services are served, by process {served.pid}"
    until(lambda: not served.answer()["pending"], "the address to be bound")
    assert exchange(connect_tcp(("127.0.0.1", port)), b"hello") == b"hello"
