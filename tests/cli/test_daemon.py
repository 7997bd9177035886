"""Which daemon a command reaches: that of its file, and of no other file with the same name."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import Say
from tests.conftest import Start
from tests.support import proc
from tests.support.daemons import ECHO, Configure, echo_with_log, run_in_own_mounts
from tests.support.harness import EVENT_TIMEOUT, Superd, is_alive, until

COMMANDS = (
    "stop", "reload", "upgrade", "reopen", "status", "status --json", "status --prometheus",
    "top --once", "connections", "kill 1-1", "disable echo", "enable echo", "log-level",
    "log-level debug", "ban 192.0.2.1", "unban 192.0.2.1", "bans", "explain echo 192.0.2.1",
)  # fmt: skip


@pytest.fixture
def usual(configured: Configure, monkeypatch: pytest.MonkeyPatch) -> Iterator[Superd]:
    """A daemon with its pid file, control socket and ban file at the default paths."""
    superd = configured("")
    for variable in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY"):
        monkeypatch.setenv(variable, str(superd.directory))
    superd.file.write_text(echo_with_log(0))
    assert superd.run("start").returncode == 0
    pid = int((superd.directory / "superd.pid").read_text())
    yield superd
    if is_alive(pid):
        os.kill(pid, signal.SIGQUIT)
        until(lambda: not is_alive(pid), "the end of the daemon")


def test_no_command_reaches_a_daemon_that_serves_another_file_of_the_same_name(
    usual: Superd, superd_here: Say, tmp_path: Path
) -> None:
    pid = (usual.directory / "superd.pid").read_text().strip()
    copy = tmp_path / "superd.toml"
    shutil.copy(usual.file, copy)
    log = usual.log()
    for words in COMMANDS:
        name, *more = words.split()
        done = superd_here(name, "-c", str(copy), *more)
        message = f"superd: process {pid} serves {usual.file}, not {copy}\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", message), words
    assert usual.log() == log
    link = tmp_path / "link" / "superd.toml"
    link.parent.mkdir()
    link.symlink_to(usual.file)
    assert superd_here("log-level", "-c", str(link)).stdout == "info\n"
    assert superd_here("stop", "-c", str(link)).returncode == 0


def test_stop_works_without_the_control_socket(usual: Superd, superd_here: Say) -> None:
    (usual.directory / "superd.sock").unlink()
    done = superd_here("stop", "-c", str(usual.file))
    assert (done.returncode, done.stderr) == (0, "")
    assert not (usual.directory / "superd.pid").exists()


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_stop_works_without_the_pid_file(usual: Superd, superd_here: Say, how: str) -> None:
    of_file = ("-c", str(usual.file))
    pid = int((usual.directory / "superd.pid").read_text())
    if how == "removed":
        (usual.directory / "superd.pid").unlink()
    else:
        text = usual.file.read_text()
        usual.file.write_text(text.replace("[daemon]\n", '[daemon]\npid-file = "new.pid"\n'))
        assert superd_here("reload", *of_file).returncode == 0
    assert superd_here("stop", *of_file).returncode == 0
    assert not is_alive(pid)
    assert superd_here("stop", *of_file).returncode == 1


@contextmanager
def answering(
    superd: Superd, answer: Callable[[str], object], *, connections: int
) -> Iterator[None]:
    """Answer requests at the control socket of a daemon that does not run."""

    def serve() -> None:
        for _ in range(connections):
            client, _ = server.accept()
            with client, client.makefile("rw") as line:
                for request in line:
                    line.write(json.dumps(answer(json.loads(request)["request"])) + "\n")
                    line.flush()

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(superd.directory / "control"))
        server.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(EVENT_TIMEOUT)


def test_a_daemon_without_the_outline_request_is_asked_for_its_status(
    tmp_path: Path, superd_here: Say, configured: Configure
) -> None:
    superd = configured(ECHO.format(port=0))
    requests = []

    def answer(request: str) -> object:
        requests.append(request)
        if request == "status":
            return {"pid": 1, "configuration": served}
        return {"bans": []} if request == "bans" else {"error": f'there is no request "{request}"'}

    with answering(superd, answer, connections=2):  # one of each command
        served = str(superd.file)
        assert superd_here("bans", "-c", str(superd.file)).returncode == 0
        served = "/etc/superd.toml"
        done = superd_here("bans", "-c", str(superd.file))
    message = f"superd: process 1 serves /etc/superd.toml, not {superd.file}\n"
    assert (done.returncode, done.stderr) == (1, message)
    assert requests == ["outline", "status", "bans", "outline", "status"]


def test_a_reload_is_requested_and_followed_on_one_connection(
    tmp_path: Path, superd_here: Say, configured: Configure
) -> None:
    superd = configured(ECHO.format(port=0))
    requests = []
    states = iter(["loading", "starting", "done"])

    def answer(request: str) -> object:
        requests.append(request)
        if request == "outline":
            return {"pid": 1, "configuration": str(superd.file)}
        if request == "reload":
            return {"number": 7}
        outcome = {"notices": [], "problems": [], "code": 0, "changes": {"echo": "unchanged"}}
        return {"state": next(states), **outcome}

    with answering(superd, answer, connections=1):
        done = superd_here("reload", "-c", str(superd.file))
    assert (done.returncode, done.stdout, done.stderr) == (0, "unchanged: 1 service\n", "")
    assert requests == ["outline", "reload", *["reload-state"] * 3]


def test_commands_work_despite_mistakes_in_services(usual: Superd, superd_here: Say) -> None:
    text = usual.file.read_text()
    usual.file.write_text(f'{text}\n[service.x]\nplugin = 5\nlisten = "nowhere"\nuser = "none"\n')
    for words in ("status", "log-level debug", "connections", "disable echo", "top", "stop"):
        name, *more = words.split()
        done = superd_here(name, "-c", str(usual.file), *more)
        message = "service.echo: it is the last service that is enabled\n"
        expected = (78, message) if name == "disable" else (0, "")
        assert (done.returncode, done.stderr) == expected, words


@pytest.mark.root
@pytest.mark.tool("unshare", "mount", "setpriv")
def test_another_user_learns_that_a_system_daemon_serves_the_file(tmp_path: Path) -> None:
    script = f"""
        set -e
        for place in /run /var/lib; do mount -t tmpfs tmpfs $place; done
        mount -t tmpfs tmpfs /mnt
        for name in one other; do mkdir /mnt/$name; cp superd.toml /mnt/$name; done
        "$@" start -c /mnt/one/superd.toml
        cat /run/superd/superd.pid
        for name in one other; do
            for word in status reload stop; do
                code=0
                env -C / HOME=/nonexistent setpriv --reuid {proc.NOBODY} --clear-groups \\
                    "$@" $word -c /mnt/$name/superd.toml 2>&1 || code=$?
                echo $code
            done
        done
        "$@" stop -c /mnt/one/superd.toml
    """
    (tmp_path / "superd.toml").write_text(ECHO.format(port=0))
    done = run_in_own_mounts(script, tmp_path)
    pid, *printed = done.stdout.splitlines()
    text = f"superd: superd runs as process {pid} and belongs to another user"
    assert printed[:6] == [text, "77"] * 3, done
    home = "/nonexistent/.local/state/superd"
    assert printed[6:] == [
        "superd is not running", "3", "superd: it is not running", "1",
        f"superd: no superd runs with the pid file {home}/superd.pid", "1",
    ]  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_an_upgrade_that_is_ready_finds_its_client_disconnected(
    tmp_path: Path, superd_here: Say, configured: Configure
) -> None:
    superd = configured(ECHO.format(port=0))
    report = {"notices": [], "problems": [], "code": 0, "changes": {}}
    connections = (["trying", "ready"], ["done"])

    def serve() -> None:
        for states in connections:
            client, _ = server.accept()
            with client, client.makefile("rw") as line:
                for request in line:
                    name = json.loads(request)["request"]
                    answer: dict[str, object] = {"configuration": str(superd.file), "number": 1}
                    if name == "upgrade-state":
                        answer = {**report, "state": states.pop(0), "before": "1", "version": "2"}
                    line.write(json.dumps(answer) + "\n")
                    line.flush()

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(superd.directory / "control"))
        server.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        done = superd_here("upgrade", "-c", str(superd.file))
        thread.join(EVENT_TIMEOUT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "superd 1 -> 2\n", "")
    assert connections == ([], [])


EDITED = {
    "unclosed_array": "{text}allow = [\n",
    "unclosed_string": '{text}[service.x]\nplugin = "echo\n',
    "at_the_start": "= 5\n{text}",
    "in_daemon": "[daemon]\nlog = [\n{text}",
    "binary": "{text}\0\x01\n",
}


@pytest.mark.parametrize("how", EDITED)
def test_commands_need_no_valid_file(start_superd: Start, how: str) -> None:
    """The file may be in the middle of an edit while an operator bans an attacker."""
    entry = '[service.{}]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n'
    served = start_superd(entry.format("echo") + entry.format("other"))
    text = served.file.read_text()
    if how == "in_daemon":
        text = text.replace("[daemon]\n", "", 1)
    served.file.write_text(EDITED[how].replace("{text}", text))
    for words in ("ban 192.0.2.9", "status", "unban 192.0.2.9", "connections", "log-level",
                  "disable echo", "top --once", "reopen", "stop"):  # fmt: skip
        done = served.run(*words.split())
        assert done.returncode == 0, (words, done.stderr)
    assert served.wait() == 0
    done = served.run("status")
    assert done.returncode == 78
    assert f"{served.file}:" in done.stderr


def test_a_daemon_with_another_control_socket_is_named_with_its_remedy(
    start_superd: Start,
) -> None:
    served = start_superd('[service.echo]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n')
    text = served.file.read_text()
    for changed in (
        text.replace("/control", "/other"),
        text.replace("/control", "/other").replace("/pid", "/other-pid"),
    ):
        served.file.write_text(changed)
        done = served.run("reload")
        assert done.returncode == 1
        assert done.stderr == (
            f"superd: control socket {served.directory}/other: no process listens there; process"
            f" {served.pid} serves {served.file} on another one. A change of control-socket takes a"
            f" restart; kill -HUP {served.pid} reloads, kill -TERM {served.pid} stops\n"
        )
    served.file.write_text(text)
    assert served.run("reload").returncode == 0
