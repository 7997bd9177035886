"""What operators change and see while superd runs: services, log level, log files, status, top."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import receive_and_close, receive_to_end
from tests.support.harness import EVENT_TIMEOUT, Superd, command, exchange, make_plugin, until
from tests.support.ports import free_port

TOML = """
[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:{port}"

[service.daytime]
plugin = "daytime"
listen = "tcp://127.0.0.1:0"

[service.off]
enabled = false
plugin = "echo"
listen = "tcp://127.0.0.1:0"
"""


@pytest.fixture
def served(start_superd: Start) -> Superd:
    return start_superd(TOML.replace("{port}", str(free_port())))


def services(served: Superd) -> set[str]:
    return {service["name"] for service in served.answer()["services"]}


def test_a_disabled_service_stops_listening_and_its_clients_finish(served: Superd) -> None:
    with served.connect("echo") as client:
        client.sendall(b"before")
        assert client.recv(100) == b"before"
        done = served.run("disable", "echo")
        assert (done.returncode, done.stdout, done.stderr) == (0, "echo: disabled\n", "")
        with pytest.raises(ConnectionRefusedError):
            served.connect("echo")
        assert exchange(client, b"after") == b"after"
    assert len(receive_and_close(served.connect("daytime"))) == 26
    assert services(served) == {"daytime"}
    assert served.answer()["overrides"] == {"echo": False}
    assert "\necho  disabled by the operator\n" in served.run("status").stdout
    assert "info: disabled by the operator service=echo\n" in served.log()


def test_a_service_that_is_not_served_has_no_connections(served: Superd) -> None:
    assert served.run("disable", "echo").returncode == 0
    for name in ("off", "echo"):
        done = served.run("connections", name)
        assert (done.returncode, done.stdout, done.stderr) == (0, "no open connections\n", "")
    served.toml += '[service.new]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n'
    served.write()
    done = served.run("connections", "new")
    message = 'superd: there is no service "new"; a new one takes a reload\n'
    assert (done.returncode, done.stderr) == (1, message)


def test_a_service_stays_disabled_over_reloads_until_it_is_enabled_or_superd_stops(
    served: Superd,
) -> None:
    assert served.run("disable", "echo").returncode == 0
    served.signal(signal.SIGHUP)
    until(lambda: served.answer()["generation"] == 3, "a reload")
    assert services(served) == {"daytime"}
    assert served.run("reload").stdout == "unchanged: 1 service\n"
    assert services(served) == {"daytime"}
    assert served.run("enable", "echo").returncode == 0
    assert exchange(served.connect("echo"), b"back") == b"back"
    assert served.run("disable", "echo").returncode == 0
    assert served.stop() == 0
    served.start()
    assert served.answer()["overrides"] == {}
    assert services(served) == {"daytime", "echo"}


def test_a_service_that_its_entry_disables_can_be_enabled(served: Superd) -> None:
    assert served.run("enable", "off").returncode == 0
    assert services(served) == {"daytime", "echo", "off"}
    assert "\noff  enabled by the operator\n" in served.run("status").stdout
    assert "info: enabled by the operator service=off\n" in served.log()


def test_an_unknown_service_and_the_last_one_cannot_be_disabled(served: Superd) -> None:
    done = served.run("disable", "ehco")
    message = 'superd: there is no service "ehco" (did you mean "echo"?)\n'
    assert (done.returncode, done.stderr) == (2, message)
    assert served.run("disable", "echo").returncode == 0
    done = served.run("disable", "daytime")
    assert done.returncode == 78
    assert done.stderr == "service.daytime: it is the last service that is enabled\n"
    assert served.answer()["overrides"] == {"echo": False}
    assert len(receive_and_close(served.connect("daytime"))) == 26


def test_the_daemon_refuses_an_unknown_service_itself(served: Superd) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(served.directory / "control"))
        client.sendall(b'{"request": "enable", "service": "none", "enabled": false}\n')
        client.sendall(b'{"request": "enable", "service": "echo", "enabled": "no"}\n')
        with client.makefile() as answers:
            assert json.loads(answers.readline()).keys() == {"number"}
            assert json.loads(answers.readline()).keys() == {"error"}
    served.wait_for_log('not reloaded: there is no service "none"')
    assert served.answer()["overrides"] == {}


def test_enable_and_disable_take_no_other_change_of_the_file(served: Superd) -> None:
    before = served.toml
    added = before + '[service.extra]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n'
    for edited in (added, before.replace('"daytime"', '"dyatime"')):
        served.toml = edited
        served.write()
        assert served.run("disable", "echo").returncode == 0
        assert services(served) == {"daytime"}
        assert served.run("enable", "echo").returncode == 0
        assert services(served) == {"daytime", "echo"}
        assert exchange(served.connect("echo"), b"x") == b"x"
    assert served.run("reload").returncode == 78
    served.toml = added
    served.write()
    done = served.run("enable", "extra")
    message = 'there is no service "extra"; a new one takes a reload\n'
    assert (done.returncode, done.stderr) == (1, message)
    assert served.run("reload").returncode == 0
    assert services(served) == {"daytime", "echo", "extra"}


def test_a_service_removed_from_the_file_can_be_disabled_before_a_reload(served: Superd) -> None:
    served.toml = served.toml.replace("service.echo", "service.replaced")
    served.write()
    assert served.run("disable", "echo").returncode == 0
    assert services(served) == {"daytime"}
    assert served.run("reload").returncode == 0
    assert services(served) == {"daytime", "replaced"}


def test_a_reload_that_fails_changes_no_override(served: Superd) -> None:
    assert served.run("disable", "echo").returncode == 0
    served.toml = served.toml.replace('"daytime"', '"dyatime"')
    served.write()
    assert served.run("reload").returncode == 78
    assert served.answer()["overrides"] == {"echo": False}


CHATTY = """
    from superd.plugin import Service, hookimpl

    class Chatty(Service):
        name = "chatty"

        {async_}def stream(self, conn):
            {async_}for line in conn:
                level = line.decode().strip()
                conn.log(level, f"said at {level}")
                {await_}conn.send(line)

    @hookimpl
    def superd_services():
        return [Chatty]
    """

LEVELS = ("debug", "info", "warning", "error")


def logged_levels(served: Superd, client: socket.socket) -> list[str]:
    """Have a plugin log a line at each level; return the levels that reached the log."""
    before = len(served.log())
    for level in LEVELS:
        client.sendall(f"{level}\n".encode())
        assert client.recv(100) == f"{level}\n".encode()
    served.wait_for_log(rf"(?s)(?<=.{{{before}}}).*said at error")
    return re.findall(r" said at ([a-z]+)", served.log()[before:])


@pytest.mark.parametrize("model", ["loop", "thread", "fork", "prefork"])
def test_the_log_level_changes_at_once_in_every_process(
    start_superd: Start, tmp_path: Path, model: str
) -> None:
    words = ("async ", "await ") if model == "loop" else ("", "")
    source = CHATTY.replace("{async_}", words[0]).replace("{await_}", words[1])
    toml = f"""
        [service.chatty]
        plugin = "chatty"
        model = "{model}"
        listen = "tcp://127.0.0.1:0"
        """
    served = start_superd(toml, env=make_plugin(tmp_path / "plugins", "chatty", source))
    with served.connect("chatty") as client:
        assert logged_levels(served, client) == ["info", "warning", "error"]
        assert served.run("log-level").stdout == "info\n"
        for level, logged in (("error", LEVELS[3:]), ("debug", LEVELS), ("warning", LEVELS[2:])):
            done = served.run("log-level", level)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            assert logged_levels(served, client) == list(logged)
    assert served.answer()["log-level"] == "warning"


def test_a_reload_takes_the_log_level_only_if_the_file_has_changed_it(
    start_superd: Start,
) -> None:
    toml = f'[daemon]\nlog-level = "warning"\n{TOML.replace("{port}", str(free_port()))}'
    served = start_superd(toml)
    assert "ready:" not in served.log()
    assert served.run("log-level", "error").returncode == 0
    assert served.run("reload").returncode == 0
    assert served.answer()["log-level"] == "error"  # the file has not changed
    served.toml = toml.replace('"warning"', '"debug"')
    served.write()
    assert served.run("reload").returncode == 0
    assert served.answer()["log-level"] == "debug"


def test_an_unknown_log_level_is_refused(served: Superd) -> None:
    assert served.run("log-level", "loud").returncode == 2
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(served.directory / "control"))
        client.sendall(b'{"request": "log-level", "level": ["info"]}\n')
        with client.makefile() as answers:
            assert "error" in json.loads(answers.readline())
    assert served.answer()["log-level"] == "info"


def test_log_files_are_reopened(start_superd: Start) -> None:
    served = start_superd(f'[daemon]\nlog = "./own"\n{TOML.replace("{port}", "0")}')
    own = served.directory / "own"
    own.rename(served.directory / "old")
    done = served.run("reopen")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "log files reopened" in own.read_text()


def test_a_log_file_that_cannot_be_reopened_is_an_error(
    tmp_path: Path, start_superd: Start
) -> None:
    there, moved = tmp_path / "logs", tmp_path / "moved"
    there.mkdir()
    toml = TOML.replace("{port}", "0")
    served = start_superd(f'[daemon]\nlog = ["{there}/own", "stderr"]\n{toml}')
    there.rename(moved)
    done = served.run("reopen")
    message = (
        f"log file not reopened, the old one stays in use: No such file or directory: {there}/own"
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"superd: {message}\n")
    for text in ((moved / "own").read_text(), served.log()):
        assert f"error: {message}\n" in text
        assert "log files reopened" not in text


def test_a_full_output_is_an_error(served: Superd) -> None:
    for words in (("status", "--prometheus"), ("status",), ("log-level",), ("top",), ("reload",)):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command(words[0], "-c", str(served.file), *words[1:]),
                stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
        message = "superd: cannot write: No space left on device\n"
        assert (done.returncode, done.stderr) == (1, message)


def test_stop_returns_once_the_daemon_has_ended(served: Superd) -> None:
    assert served.run("stop").returncode == 0
    assert served.wait() == 0
    for name in ("connections", "top", "reopen", "log-level"):
        done = served.run(name)
        assert (done.returncode, done.stderr) == (1, "superd: it is not running\n")


def test_status_shows_rates_refusals_and_the_resources_of_workers(start_superd: Start) -> None:
    served = start_superd(
        '[service.echo]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\ndeny = "127.0.0.2"\n'
    )
    assert exchange(served.connect("echo"), b"hello") == b"hello"
    for _ in range(2):
        with served.connect("echo", "127.0.0.2") as refused:
            receive_to_end(refused)
    until(lambda: served.counts("echo")["refused-access"] == 2, "two refusals")
    until(lambda: served.answer()["services"][0]["rate"] is not None, "a rate")
    answer = served.answer()
    [worker] = answer["workers"]
    assert 0 < worker["uptime"] < 600
    assert worker["cpu"] < 600
    assert worker["memory"] > 1 << 20
    assert worker["generation"] == answer["generation"] == 1
    text = served.run("status").stdout
    assert "\n  refused: access 2\n" in text
    head, line = re.findall(r"^(?:service|echo) .*", text, re.MULTILINE)
    cells = dict(zip(re.split(r"  +", head), re.split(r"  +", line), strict=True))
    assert cells["accepted"] == "3"  # by accept(2), and two of them were turned away
    assert cells["refused"] == "2"
    assert (cells["in"], cells["out"]) == ("5B", "5B")
    assert cells["listen"] == "tcp://{}:{}".format(*served.address("echo"))
    assert re.fullmatch(r"\d+\.\d", cells["per second"])

    def has_used_a_tick() -> bool:
        exchange(served.connect("echo"), b"work")
        return bool(served.answer()["workers"][0]["cpu"] > 0)

    until(has_used_a_tick, "processor time of the worker, which the kernel counts in ticks")


def test_one_snapshot_of_top_shows_services_and_workers(served: Superd) -> None:
    for arguments in (("--once",), ()):  # where there is no terminal it is the same
        with served.connect("echo"):
            done = served.run("top", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0].startswith(f"superd is serving, process {served.pid}")
        assert lines[2].split() == [
            "service", "active", "accepted/s", "refused/s", "in/s", "out/s",
        ]  # fmt: skip
        assert lines[3].split() == ["echo", "1", "0", "0", "0B", "0B"]
        [worker] = served.workers()
        assert lines[-1].split()[:4] == [str(worker), *lines[-1].split()[1:2], "ready", "1"]


@contextmanager
def top_at_terminal(
    served: Superd, columns: int = 120
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run `superd top` at a terminal; yield the process and our end of the terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("top", "-c", str(served.file)),
        stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "40"},
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.fixture
def screen(served: Superd) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with top_at_terminal(served) as both:
        yield both


def shown(screen: int, text: bytes) -> None:
    """Wait until a text is on the screen."""
    seen = b""

    def has_arrived() -> bool:
        nonlocal seen
        if select.select([screen], [], [], 0)[0]:
            seen += os.read(screen, 10_000)
        return text in seen

    until(has_arrived, f"{text!r} on the screen")


def rest_of(screen: int, process: subprocess.Popen[bytes]) -> bytes:
    """Return everything that the process draws until it ends."""
    seen = b""

    def is_over() -> bool:
        nonlocal seen
        if select.select([screen], [], [], 0)[0]:
            try:
                seen += os.read(screen, 10_000)
            except OSError:  # the process has closed its end
                return process.poll() is not None
        return False

    until(is_over, "the end of the process")
    return seen


@pytest.mark.parametrize("how", ["q", "interrupt", "the daemon ends"])
@pytest.mark.terminal
def test_top_redraws_until_it_is_ended(
    served: Superd, screen: tuple[subprocess.Popen[bytes], int], how: str
) -> None:
    process, terminal = screen
    for _ in range(2):
        shown(terminal, b"q quits")
        shown(terminal, b"daytime")
    if how == "q":
        os.write(terminal, b"q")
    elif how == "interrupt":
        process.send_signal(signal.SIGINT)
    else:
        served.stop()
    rest = rest_of(terminal, process)
    assert process.wait(EVENT_TIMEOUT) == {"q": 0, "interrupt": 130}.get(how, 1)
    assert b"\x1b[?1049l" in rest  # what was on the screen before is there again
    assert b"Traceback" not in rest


@pytest.mark.terminal
def test_names_are_shortened_before_figures(start_superd: Start) -> None:
    name = "a-name-of-a-service-that-leaves-no-room-for-anything-else"
    toml = TOML.replace("{port}", str(free_port()))
    served = start_superd(toml.replace("service.daytime", f"service.{name}"))
    with top_at_terminal(served, columns=80) as (_, terminal):
        line = "a-name-of-a-service-that-leaves-no-…       0           0          0    0B     0B"
        shown(terminal, line.encode())


@pytest.mark.terminal
def test_on_a_narrow_screen_names_are_still_readable(served: Superd) -> None:
    with top_at_terminal(served, columns=40) as (_, terminal):
        shown(terminal, b"\ndaytime ")


def test_status_shows_no_number_of_bytes_where_superd_does_not_see_them(
    start_superd: Start, tmp_path: Path
) -> None:
    """A program reads and writes its socket itself; by tcp the kernel counts for superd."""
    entry = '[service.{0}]\nplugin = "exec"\nlisten = "{1}"\noptions.command = "cat"\n'
    served = start_superd(
        entry.format("by-tcp", "tcp://127.0.0.1:0")
        + entry.format("by-unix", f"unix://{tmp_path}/cat")
        + entry.format("waits", "tcp://127.0.0.1:0")
        + "wait = true\n"
    )
    assert exchange(served.connect("by-tcp"), b"hello") == b"hello"
    until(lambda: served.counts("by-tcp")["bytes-in"] == 5, "the counting of the bytes")
    lines = served.run("status").stdout.splitlines()
    shown = {words[0]: words[6:8] for words in map(str.split, lines) if len(words) > 8}
    assert shown["by-tcp"] == ["5B", "5B"]
    assert shown["by-unix"] == shown["waits"] == ["-", "-"]
