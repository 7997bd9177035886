"""Upgrade in place: the same process runs another program, and no connection is lost."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from superd import __version__
from superd.master.pidfile import holder
from tests.conftest import Start
from tests.scenarios.test_access import is_admitted
from tests.scenarios.test_reload import LIMITED_BY_SOURCE
from tests.support.clients import (
    connect_many,
    connect_tcp,
    connect_unix,
    receive_and_close,
    receive_to_end,
)
from tests.support.daemons import echo_with_log, stop_daemon
from tests.support.harness import (
    Superd,
    ask_udp,
    exchange,
    is_alive,
    make_plugin,
    until,
)
from tests.support.loads import echo_load, under_load, wait_for_answers
from tests.support.passing import NotifySocket
from tests.support.ports import free_port, free_ports
from tests.support.proc import children, descriptors, inode_link

ECHO = """
[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
"""
ROOT = Path(__file__).parents[2]
POOL = "root" if os.geteuid() == 0 else "default"


def upgrade(served: Superd) -> str:
    """Upgrade, and return the output of the command."""
    done = served.run("upgrade")
    assert (done.returncode, done.stderr) == (0, ""), served.log()
    return done.stdout


def failed_upgrade(served: Superd) -> tuple[int, str]:
    done = served.run("upgrade")
    assert done.returncode != 0
    return done.returncode, done.stderr


def copy_of_superd(directory: Path) -> Path:
    """Copy superd and its plugins, so a test can change them; `environment` selects the copy.

    Compiled modules are copied too: without them each process of superd compiles all of them.
    """
    ignored = shutil.ignore_patterns("*.pyc.*")  # another test process is writing these
    shutil.copytree(ROOT / "plugins", directory, ignore=ignored)
    shutil.copytree(ROOT / "superd", directory / "superd", ignore=ignored)
    return directory


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    return copy_of_superd(tmp_path / "installed")


def environment(installed: Path) -> dict[str, str]:
    path = [str(installed), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}


def test_an_upgrade_keeps_the_process_the_listeners_and_the_connections(
    start_superd: Start, installed: Path, tmp_path: Path
) -> None:
    toml = f"""
        [service.echo]
        plugin = "echo"
        listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0", "unix://{tmp_path}/echo"]

        [service.child]
        plugin = "exec"
        listen = "tcp://127.0.0.1:0"
        options = {{ command = "/bin/cat" }}
        """
    served = start_superd(toml, env=environment(installed))
    address, udp, child = (
        served.address("echo"),
        served.address("echo", "udp"),
        served.address("child"),
    )
    pid = served.pid
    before = (
        inode_link(address[1]),
        inode_link(udp[1], "udp"),
        os.stat(tmp_path / "echo").st_ino,
    )
    version = installed / "superd" / "__init__.py"
    version.write_text(version.read_text().replace(__version__, "99.0"))
    with (
        connect_tcp(address) as one,
        connect_unix(tmp_path / "echo") as other,
        connect_tcp(child) as third,
    ):
        for client in (one, other, third):
            client.sendall(b"before")
            assert client.recv(100) == b"before"
        output = upgrade(served)
        assert output == f"superd {__version__} -> 99.0\nunchanged: 2 services\n"
        for client in (one, other, third):
            client.sendall(b"after")
            assert client.recv(100) == b"after"
        now = served.answer()
        assert (now["pid"], now["version"], now["generation"]) == (pid, "99.0", 2)
        assert served.counts("echo")["active"] == 2
        states = {worker["generation"]: worker["state"] for worker in now["workers"]}
        assert states == {1: "draining", 2: "ready"}
        for at in (connect_tcp(address), connect_unix(tmp_path / "echo"), connect_tcp(child)):
            assert exchange(at, b"new") == b"new"
        assert ask_udp(udp, b"new") == b"new"
    until(lambda: len(served.answer()["workers"]) == 1, "the old worker to end")
    after = (
        inode_link(address[1]),
        inode_link(udp[1], "udp"),
        os.stat(tmp_path / "echo").st_ino,
    )
    assert after == before
    assert served.counts("echo")["bytes-in"] == len(b"beforeafter") * 2 + len(b"new") * 3
    assert served.pid == pid == holder(served.directory / "pid")
    served.signal(signal.SIGTERM)
    assert served.wait() == 0
    assert {entry.name for entry in served.directory.iterdir()} == {"superd.toml", "log"}
    assert not (tmp_path / "echo").exists()


@pytest.mark.parametrize("number", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_upgrades_leak_no_descriptor_and_no_process(start_superd: Start, number: int) -> None:
    served = start_superd(ECHO)

    upgrade(served)
    until(lambda: len(served.answer()["workers"]) == 1, "the old worker to end")
    before = served.open_descriptors()
    for _ in range(number):
        upgrade(served)
    until(lambda: len(served.answer()["workers"]) == 1, "the old workers to end")
    until(lambda: served.open_descriptors() <= before, "the closing of the additional descriptors")
    assert children(served.pid) == served.workers()
    inherited = [d for d in descriptors(served.pid) if d.number > 2 and d.is_inherited]
    assert inherited == []


# ways to break an installation: the file, the text to replace, its replacement, the error
BROKEN = {
    "syntax": ("errors.py", "import enum", "import enum(", "SyntaxError"),
    "exit": ("master/resume.py", "import gc", "raise SystemExit", "ended with code 0"),
    "import": ("worker/worker.py", "import gc", "import nowhere", "No module named 'nowhere'"),
    "crash": ("master/plan/pools.py", "import os", "import os; os.abort()", "was ended by SIGABRT"),
    "worker": (
        "worker/engine.py",
        "self.context = context",
        "unknown()",
        "'unknown' is not defined",
    ),
    "format": (
        "master/change/upgrade/state.py",
        "FORMAT = 1",
        "FORMAT = 2",
        f"superd {__version__} cannot take over from {__version__}: restart superd instead",
    ),
}


@contextmanager
def broken_by(installed: Path, way: str) -> Iterator[str]:
    """Break an installation, and yield the expected error."""
    name, old, new, error = BROKEN[way]
    file = installed / "superd" / name
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    try:
        yield error
    finally:
        file.write_text(text)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Superd, Path]]:
    """One superd that runs a copy of the program; no test upgrades it."""
    directory = tmp_path_factory.mktemp("superd")
    program = copy_of_superd(directory / "installed")
    served = Superd(directory, ECHO, env=environment(program))
    try:
        yield served.start(), program
    finally:
        served.stop()


@pytest.mark.parametrize("way", BROKEN)
def test_an_upgrade_to_a_broken_program_fails_and_changes_nothing(
    running: tuple[Superd, Path], way: str
) -> None:
    served, program = running
    workers = served.workers()
    with served.connect("echo") as client:
        with broken_by(program, way) as expected:
            code, error = failed_upgrade(served)
        assert (code, expected in error) == (1, True)
        assert f"not upgraded: {error.splitlines()[-1]}\n" in served.log()
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert exchange(served.connect("echo"), b"x") == b"x"
    assert served.workers() == workers


def test_an_upgrade_to_a_repaired_program_succeeds(start_superd: Start, installed: Path) -> None:
    served = start_superd(ECHO, env=environment(installed))
    file = installed / "superd" / "worker" / "engine.py"
    aside = file.rename(file.with_suffix(".aside"))
    failed_upgrade(served)
    with served.connect("echo") as client:
        aside.rename(file)
        upgrade(served)
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    assert exchange(served.connect("echo"), b"x") == b"x"


def test_a_mistake_in_the_configuration_fails_the_upgrade_and_is_reported_with_its_line(
    start_superd: Start,
) -> None:
    served = start_superd(ECHO)
    served.file.write_text(served.file.read_text() + 'colour = "red"\n')
    code, text = failed_upgrade(served)
    assert code == 78
    line = served.file.read_text().count("\n")
    assert text.startswith(f"{served.file}:{line}:1: service.echo.colour: unknown key")
    assert served.answer()["generation"] == 1
    assert exchange(served.connect("echo"), b"x") == b"x"


def test_a_log_file_that_cannot_be_opened_fails_the_upgrade(
    start_superd: Start, tmp_path: Path
) -> None:
    (tmp_path / "logs").mkdir()
    served = start_superd(f'[daemon]\nlog = "{tmp_path}/logs/log"\n' + ECHO)
    (tmp_path / "logs").rename(tmp_path / "aside")
    code, text = failed_upgrade(served)
    assert (code, f"cannot log to {tmp_path}/logs/log: No such file" in text) == (1, True)
    assert "the running program is unchanged" in (tmp_path / "aside" / "log").read_text()
    assert exchange(served.connect("echo"), b"x") == b"x"


def test_a_missing_interpreter_fails_the_upgrade_and_is_reported(
    tmp_path: Path, installed: Path
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    env = environment(installed)
    env["PYTHONPATH"] += os.pathsep + sysconfig.get_path("purelib")
    served = Superd(tmp_path, ECHO, env=env, python=str(python))
    try:
        served.start()
        upgrade(served)
        python.unlink()
        code, text = failed_upgrade(served)
        assert (code, text) == (1, f"No such file or directory: {python}\n")
        assert exchange(served.connect("echo"), b"x") == b"x"
    finally:
        served.stop()


HANGS = """
    import os, time
    from superd.plugin import Service, hookimpl

    class Hangs(Service):
        name = "hangs"

        def start(self):
            if os.path.exists({flag!r}):
                {then}

        def respond(self, request):
            return b"served\\n"

    @hookimpl
    def superd_services():
        return [Hangs]
    """
HANGING = '[service.h]\nplugin = "hangs"\nlisten = "tcp://127.0.0.1:0"\nuser = "root"\n'


def test_a_stop_does_not_wait_for_a_hanging_trial(start_superd: Start, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    source = HANGS.format(flag=str(flag), then="time.sleep(600)")
    served = start_superd(HANGING, env=make_plugin(tmp_path / "plugins", "hangs", source))
    flag.touch()
    served.signal(signal.SIGUSR2)
    trial = until(lambda: set(children(served.pid)) - set(served.workers()), "the trial").pop()
    below = until(lambda: children(trial), "the new program's trial")
    until(lambda: children(below[0]), "the trial's worker")
    workers = children(below[0])
    done = served.run("upgrade")
    assert (done.returncode, "is under way" in done.stderr) == (1, True)
    assert receive_and_close(served.connect("h")) == b"served\n"
    served.signal(signal.SIGTERM)
    assert served.wait() == 0
    assert "not upgraded: superd stops" in served.log()
    until(lambda: not any(map(is_alive, [trial, *below, *workers])), "the end of the trial")


def test_the_old_workers_keep_serving_when_the_new_ones_fail_after_the_trial(
    start_superd: Start, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    then = f"time.sleep(0) if not os.path.exists({str(flag)!r} + '2') else os._exit(3)"
    source = HANGS.format(flag=str(flag), then=f"{then}; open({str(flag)!r} + '2', 'w')")
    served = start_superd(HANGING, env=make_plugin(tmp_path / "plugins", "hangs", source))
    pid, workers = served.pid, served.workers()
    assert served.run("ban", "127.0.0.7").returncode == 0
    flag.touch()  # the first start, by the trial, succeeds; the second start fails
    code, text = failed_upgrade(served)
    assert code == 1
    assert text.startswith("superd: the workers of the former version keep serving:\n")
    assert re.search(rf"^worker \d+ of pool {POOL} ended with code 3$", text, re.MULTILINE)
    assert (served.pid, served.workers()) == (pid, workers)
    assert receive_and_close(served.connect("h")) == b"served\n"
    assert served.run("ban", "127.0.0.8").returncode == 0
    assert served.run("unban", "127.0.0.7").returncode == 0
    with served.connect("h", "127.0.0.8") as banned:
        assert receive_to_end(banned)[0] == b""  # the old workers apply the new ban
    assert receive_and_close(served.connect("h", "127.0.0.7")) == b"served\n"
    os.kill(workers[0], signal.SIGKILL)
    flag.unlink()
    assert receive_and_close(served.connect("h")) == b"served\n"
    assert served.run("reload").returncode == 0
    assert receive_and_close(served.connect("h")) == b"served\n"


def test_limits_bans_and_rates_are_kept_over_an_upgrade(start_superd: Start) -> None:
    served = start_superd(LIMITED_BY_SOURCE)
    assert served.run("ban", "127.0.0.9", "--reason", "rude").returncode == 0
    bans = served.run("bans").stdout
    assert [bool(receive_and_close(served.connect("slow"))) for _ in range(2)] == [True] * 2
    clients = [served.connect("echo", f"127.0.0.{source}") for source in (2, 2, 2, 3)]
    try:
        for client in clients:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        upgrade(served)
        assert served.counts("echo")["active"] == 4
        assert not is_admitted(served, "echo", "127.0.0.2")
        clients.append(served.connect("echo", "127.0.0.4"))
        clients[-1].sendall(b"x")
        assert clients[-1].recv(1) == b"x"
        assert not is_admitted(served, "echo", "127.0.0.5")
        assert served.counts("echo")["refused-max-per-source"] == 1
        assert served.counts("echo")["refused-max-connections"] == 1
    finally:
        for client in clients:
            client.close()
    assert [bool(receive_and_close(served.connect("slow"))) for _ in range(2)] == [True, False]
    assert not is_admitted(served, "echo", "127.0.0.9")
    assert served.run("bans").stdout == bans


def test_a_lifted_ban_stays_lifted_even_if_the_ban_file_could_not_be_written(
    start_superd: Start,
) -> None:
    served = start_superd(ECHO)
    assert served.run("ban", "127.0.0.9").returncode == 0
    file = served.directory / "bans"
    until(lambda: file.exists() and "127.0.0.9" in file.read_text(), "the ban in its file")
    (served.directory / "bans.new").mkdir()  # prevents the write
    assert served.run("unban", "127.0.0.9").returncode == 0
    served.wait_for_log("cannot save bans")
    upgrade(served)
    assert "127.0.0.9" in file.read_text()
    assert "127.0.0.9" not in served.run("bans").stdout
    assert is_admitted(served, "echo", "127.0.0.9")


def test_draining_workers_keep_draining_over_an_upgrade(start_superd: Start) -> None:
    port, other = free_ports(2)
    toml = f"""
        [daemon]
        drain-timeout = "20s"
        [service.a]
        plugin = "echo"
        listen = "tcp://127.0.0.1:{port}"
        """
    more = f"""
        [service.b]
        plugin = "echo"
        listen = "tcp://127.0.0.1:{other}"
        pool = "other"
        """
    served = start_superd(toml + more)
    with connect_tcp(("127.0.0.1", other)) as removed, connect_tcp(("127.0.0.1", port)) as kept:
        for client in (removed, kept):
            client.sendall(b"1")
            assert client.recv(1) == b"1"
        served.toml = toml
        served.write()
        assert served.run("reload").returncode == 0
        upgrade(served)
        states = [(w["generation"], w["state"]) for w in served.answer()["workers"]]
        assert sorted(state for state in states if state[0] != 2) == [
            (1, "draining"),
            (1, "draining"),
            (3, "ready"),
        ]
        for client in (removed, kept):
            client.sendall(b"2")
            assert client.recv(1) == b"2"
    until(lambda: len(served.answer()["workers"]) == 1, "the draining workers to end")


def test_a_killed_worker_is_replaced_after_an_upgrade(start_superd: Start) -> None:
    served = start_superd(ECHO)
    upgrade(served)
    until(lambda: len(served.workers()) == 1, "one worker")
    (worker,) = served.workers()
    os.kill(worker, signal.SIGKILL)
    until(lambda: served.workers() not in ([], [worker]), "another worker")
    assert exchange(served.connect("echo"), b"x") == b"x"
    served.wait_for_log(rf"worker {worker} of pool \S+ was ended by SIGKILL")


def test_the_watchdog_watches_a_draining_worker_whose_plugin_was_removed(
    start_superd: Start, tmp_path: Path
) -> None:
    source = """
        import time
        from superd.plugin import Service, hookimpl

        class Hogs(Service):
            name = "hogs"

            async def stream(self, conn):
                async for line in conn:
                    await conn.send(line)
                    time.sleep(600 if line == b"hog\\n" else 0)

        @hookimpl
        def superd_services():
            return [Hogs]
        """
    watched = '[daemon]\nwatchdog = "2s"\n' + ECHO
    hogs = '[service.hogs]\nplugin = "hogs"\nlisten = "tcp://127.0.0.1:0"\nuser = "root"\n'
    served = start_superd(watched + hogs, env=make_plugin(tmp_path / "plugins", "hogs", source))
    with served.connect("hogs") as client:
        client.sendall(b"x\n")
        assert client.recv(9)
        served.toml = watched
        served.write()
        shutil.rmtree(tmp_path / "plugins")
        upgrade(served)
        client.sendall(b"hog\n")
        assert client.recv(9)
        served.wait_for_log(
            rf"worker \d+ of pool {POOL} was ended by SIGKILL: its event loop was blocked"
        )
    assert exchange(served.connect("echo"), b"x") == b"x"


def test_tcpmux_and_names_work_after_an_upgrade(start_superd: Start) -> None:
    toml = """
        [service.mux]
        plugin = "tcpmux"
        listen = "tcp://127.0.0.1:0"

        [service.echo]
        plugin = "echo"
        listen = "tcpmux://echo"

        [service.named]
        plugin = "daytime"
        listen = "tcp://127.0.0.1:0"
        deny = ".example"

        [service.passed]
        plugin = "forward"
        listen = "udp://127.0.0.1:0"
        options = { to = "udp://localhost:9" }
        """
    served = start_superd(toml)
    for _ in range(2):
        assert exchange(served.connect("mux"), b"echo\r\nhello") == b"+Go\r\nhello"
        assert len(receive_and_close(served.connect("named"))) == 26
        upgrade(served)
    until(lambda: served.answer()["resolver"], "the next resolver")


def test_a_daemon_can_be_upgraded(tmp_path: Path) -> None:
    port = free_port()
    served = Superd(tmp_path, echo_with_log(port))
    served.write()
    try:
        assert served.run("start").returncode == 0
        pid = served.pid
        upgrade(served)
        assert served.pid == pid
        assert exchange(connect_tcp(("127.0.0.1", port)), b"x") == b"x"
        assert "takes over from" in (tmp_path / "log").read_text()
        assert served.run("stop").returncode == 0
        assert not is_alive(pid)
    finally:
        stop_daemon(served)


def test_the_service_manager_is_notified_of_an_upgrade_and_keeps_the_same_sockets(
    start_superd: Start, tmp_path: Path
) -> None:
    manager = NotifySocket(tmp_path / "notify")
    try:
        served = start_superd(ECHO, env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        manager.wait_for("READY")
        manager.wait_for("FDSTORE")
        upgrade(served)
        assert int(manager.wait_for("RELOADING")["MONOTONIC_USEC"])
        ready = manager.wait_for("READY")
        assert int(ready["MAINPID"]) == served.pid
        assert ready["STATUS"] == "serving: 1 services, generation 2"
        served.toml = ECHO.replace("echo]", "other]")
        served.write()
        assert served.run("reload").returncode == 0
        assert manager.wait_for("FDSTOREREMOVE")["FDNAME"] == "superd/echo"
    finally:
        manager.close()


@pytest.mark.parametrize(
    "number",
    [2, pytest.param(6, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.soak)],
)
def test_upgrades_under_load_lose_no_connection(
    start_superd: Start, installed: Path, tmp_path: Path, number: int
) -> None:
    """Every fifth upgrade is to a broken program, each broken in another way."""
    toml = f"""
        [daemon]
        workers = 2

        [service.echo]
        plugin = "echo"
        listen = ["tcp://127.0.0.1:0", "unix://{tmp_path}/echo"]
        """
    served = start_superd(toml, env=environment(installed))
    address = served.address("echo")
    loads = [echo_load(lambda: connect_tcp(address)) for _ in range(2)]
    loads.append(echo_load(lambda: connect_unix(tmp_path / "echo")))
    ways = itertools.cycle(BROKEN)
    broken = 0
    with under_load(*loads), connect_many(address, 5) as sessions:
        for n in range(number):
            if n % 5 == 1:
                broken += 1
                with broken_by(installed, next(ways)) as expected:
                    assert expected in failed_upgrade(served)[1]
            else:
                upgrade(served)
            for session in sessions:
                session.sendall(b"%d" % n)
                assert session.recv(10) == b"%d" % n
            wait_for_answers(loads, 7)
    assert [load.failures for load in loads] == [[]] * 3
    assert served.answer()["generation"] == 1 + number - broken


def test_signals_during_an_upgrade_are_not_lost(start_superd: Start) -> None:
    served = start_superd(ECHO)
    for number in (signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        served.signal(number)
    served.wait_for_log("takes over from")
    served.wait_for_log("reloaded: ")
    served.signal(signal.SIGTERM)
    assert served.wait() == 0
    assert "Traceback" not in served.log()
