"""superd under runit, s6 and an init script, with the files in conf, and as process 1."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import EVENT_TIMEOUT, Superd, exchange, is_alive, until
from tests.support.namespaces import need

pytestmark = pytest.mark.slow

CONF = Path(__file__).parent.parent.parent / "conf"
TOML = """
[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment in which the command `superd` runs the superd under test."""
    shim = tmp_path / "bin" / "superd"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m superd "$@"\n')
    shim.chmod(0o755)
    return {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}"}


@pytest.fixture
def superd(tmp_path: Path) -> Iterator[Superd]:
    """A superd that a supervisor starts; its output goes to its log."""
    directory = tmp_path / "superd"
    directory.mkdir()
    instance = Superd(directory, TOML)
    instance.write()
    yield instance
    with contextlib.suppress(OSError, ValueError):
        instance.signal(signal.SIGKILL)
    print(instance.log())


def installed(kind: str, directory: Path, superd: Superd) -> Path:
    """Copy the scripts for a supervisor, changed to use the test's configuration."""
    service = directory / "service"
    shutil.copytree(CONF / kind, service)
    for script in service.iterdir():
        script.write_text(script.read_text().replace("/etc/superd.toml", str(superd.file)))
    return service


@contextlib.contextmanager
def supervised(superd: Superd, env: dict[str, str], *command: str) -> Iterator[None]:
    """Run a supervisor."""
    with open(superd.log_file, "a") as log:
        process = subprocess.Popen(
            command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        yield
    finally:
        process.terminate()  # runsv and s6-supervise then stop superd, too
        process.wait(EVENT_TIMEOUT)


def run(env: dict[str, str], *command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_serving(superd: Superd, number: int) -> None:
    """Check that superd serves, and that its generation is `number`."""
    superd.announced = superd.log().splitlines()
    assert exchange(superd.connect("echo"), b"hello") == b"hello"
    assert superd.answer()["generation"] == number


@pytest.mark.tool("runsv", "sv")
def test_runit_starts_reloads_restarts_and_stops_superd(
    superd: Superd, env: dict[str, str], tmp_path: Path
) -> None:
    service = installed("runit", tmp_path, superd)
    with supervised(superd, env, "runsv", str(service)):
        until((service / "supervise" / "ok").exists, "runsv")
        started = run(env, "sv", "-w", "30", "start", service)
        assert started.returncode == 0, started.stdout
        assert_serving(superd, 1)
        assert run(env, "sv", "reload", service).returncode == 0
        superd.wait_for_log("reloaded")
        assert_serving(superd, 2)
        pid = superd.pid
        os.kill(pid, signal.SIGKILL)
        assert run(env, "sv", "-w", "30", "check", service).returncode == 0
        until(lambda: superd.log().count("\nready\n") == 2, "its successor")
        assert run(env, "sv", "-w", "30", "down", service).returncode == 0
        assert "stopping: connections may finish" in superd.log()
        assert not is_alive(pid)

        superd.file.write_text("[")
        run(env, "sv", "up", service)
        superd.wait_for_log(f"{superd.file}:1:")
        until(lambda: has_given_up(env, service), "runsv to give up")
        assert superd.log().count(f"{superd.file}:1:") == 1


def has_given_up(env: dict[str, str], service: Path) -> bool:
    shown = run(env, "sv", "status", service).stdout
    return shown.startswith("down: ") and "want up" not in shown


@pytest.mark.tool("s6-supervise", "s6-svc", "s6-svwait", "s6-svstat")
def test_s6_starts_reloads_restarts_and_stops_superd(
    superd: Superd, env: dict[str, str], tmp_path: Path
) -> None:
    service = installed("s6", tmp_path, superd)
    with supervised(superd, env, "s6-supervise", str(service)):
        until((service / "supervise" / "status").exists, "s6-supervise")
        assert run(env, "s6-svwait", "-U", "-t", "30000", service).returncode == 0
        assert_serving(superd, 1)  # without a wait, as superd has reported that it is ready
        assert run(env, "s6-svstat", "-o", "ready", service).stdout == "true\n"
        assert run(env, "s6-svc", "-h", service).returncode == 0
        superd.wait_for_log("reloaded")
        assert_serving(superd, 2)
        assert run(env, "s6-svc", "-wR", "-T", "30000", "-r", service).returncode == 0
        superd.log_file.write_text(superd.log().rpartition("superd 0")[2])
        assert_serving(superd, 1)
        assert run(env, "s6-svc", "-wD", "-T", "30000", "-d", service).returncode == 0
        assert "stopping: connections may finish" in superd.log()

        superd.file.write_text("[")
        run(env, "s6-svc", "-u", service)
        until(
            lambda: run(env, "s6-svstat", "-o", "wantedup", service).stdout == "false\n",
            "s6-supervise to give up",
        )


def test_a_closed_descriptor_for_readiness_is_an_error(tmp_path: Path) -> None:
    file = Superd(tmp_path, TOML).write()
    done = run(
        dict(os.environ), sys.executable, "-m", "superd", "run", "-c", file, "--ready-fd", "77"
    )
    assert (done.returncode, done.stderr) == (2, "superd: --ready-fd: descriptor 77 is not open\n")


def test_the_init_script_starts_reloads_restarts_and_stops_superd(
    superd: Superd, env: dict[str, str], tmp_path: Path
) -> None:
    text = (CONF / "superd.init").read_text()
    text = text.replace("\nPATH=/", f"\nPATH={tmp_path}/bin:/")
    script = tmp_path / "init"
    script.write_text(text.replace("/etc/superd.toml", str(superd.file)))

    def code(action: str) -> int:
        return run(env, "sh", script, action).returncode

    assert code("status") == 3
    assert code("stop") == 0
    assert code("start") == 0
    try:
        assert code("start") == 0
        first = superd.pid
        assert code("status") == 0
        assert code("reload") == 0
        assert superd.answer()["generation"] == 2
        assert code("restart") == 0
        assert superd.pid != first
        good = superd.file.read_text()
        superd.file.write_text("[")
        assert code("restart") == 6
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            superd.file.write_text(good.replace("127.0.0.1:0", f"127.0.0.1:{port}"))
            assert code("restart") == 6
        superd.file.write_text(good.replace("127.0.0.1:0", "198.51.100.7:0"))
        assert code("restart") == 6
        assert superd.answer()["state"] == "serving"
        superd.file.write_text("[")
        assert code("force-reload") == 78
        assert code("stop") == 78  # the file does not say where superd is, so superd keeps running
        superd.file.write_text(good)
        assert superd.answer()["state"] == "serving"
    finally:
        assert code("stop") == 0
    assert code("status") == 3
    assert code("nonsense") == 2


class FirstProcess(Superd):
    """superd as process 1 of a namespace; its pid file has its pid in that namespace."""

    @property
    def pid(self) -> int:
        assert self.process is not None
        [child] = children(self.process.pid)
        return child


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.root
@pytest.mark.tool("unshare")
def test_superd_as_process_1_reaps_orphans_reloads_and_drains(tmp_path: Path) -> None:
    toml = f"""{TOML}
    [service.orphan]
    plugin = "exec"
    listen = "tcp://127.0.0.1:0"
    user = "root"
    options.command = ["/bin/sh", "-c", "setsid sleep 300 >/dev/null 2>&1 <&1 & echo left"]
    """
    wrapper = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    need(*wrapper, "true")
    superd = FirstProcess(tmp_path, toml)
    try:
        superd.start(*wrapper)
        known = set(children(superd.pid))
        assert exchange(superd.connect("orphan"), b"") == b"left\n"
        orphans = until(lambda: set(children(superd.pid)) - known, "the orphan")
        for orphan in orphans:
            os.kill(orphan, signal.SIGKILL)
        until(lambda: set(children(superd.pid)) == known, "the orphan to be reaped")
        superd.signal(signal.SIGHUP)
        superd.wait_for_log("reloaded")
        with superd.connect("echo") as held:
            held.sendall(b"x")
            assert held.recv(1) == b"x"
            superd.signal(signal.SIGTERM)
            superd.wait_for_log("stopping: connections may finish")
            held.sendall(b"y")
            assert held.recv(1) == b"y"
        assert superd.wait() == 0
    finally:
        assert superd.process is not None
        superd.process.kill()
        superd.process.wait()
        assert superd.process.stdout is not None
        superd.process.stdout.close()
        print(superd.log())
