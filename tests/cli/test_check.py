"""`superd check`: every mistake at once, in words, with its place; else `configuration OK`."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from superd.cli import check as command
from superd.cli.main import main
from superd.listen.privileges import first_unprivileged_port
from superd.plugin.registry import installed, load
from superd.process.isolated import Outcome, run_isolated
from tests.cli.conftest import Install, Say
from tests.config.configurations import written
from tests.conftest import Start
from tests.support.harness import exchange, superd

ECHO = '[service.{0}]\nplugin = "echo"\nlisten = "unix://@check-{0}"\n'
SERVICE = '[service.{0}]\nplugin = "{0}"\nlisten = "unix://@check-{0}"\n'


Checked = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def checked(superd_here: Say) -> Checked:
    """Return a function that gives the exit code of `superd check` and the lines it prints."""

    def check(*files: Path) -> tuple[int, list[str]]:
        done = superd_here("check", *map(str, files))
        assert not (done.stdout and done.stderr)
        return done.returncode, (done.stdout or done.stderr).splitlines()

    return check


def test_a_configuration_without_mistakes_is_ok(tmp_path: Path) -> None:
    file = written(tmp_path, ECHO.format("a"))
    done = superd("check", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, "configuration OK\n", "")
    file = written(tmp_path, ECHO.format("a") + "nice = 50")
    done = superd("check", file.name, cwd=tmp_path)
    mistake = "service.a.nice: expected an integer of at most 19, found 50"
    assert (done.returncode, done.stdout, done.stderr) == (78, "", f"superd.toml:4:8: {mistake}\n")


def test_the_mistakes_of_several_files_are_reported_together(
    tmp_path: Path, checked: Checked
) -> None:
    good = written(tmp_path, ECHO.format("a"), "good.toml")
    wrong = written(tmp_path, ECHO.format("b") + "nice = 50", "wrong.toml")
    damaged = written(tmp_path, "[", "damaged.toml")
    assert checked(good, good) == (0, ["configuration OK"])
    code, lines = checked(wrong, good, damaged, tmp_path / "missing.toml")
    assert code == 78
    assert [line.split(": ")[0] for line in lines] == [
        f"{damaged}:1:2",
        f"{tmp_path}/missing.toml",
        f"{wrong}:4:8",
    ]


def test_fifty_mistakes_of_every_kind_are_reported_at_once(
    tmp_path: Path, checked: Checked
) -> None:
    entries = "\n".join(
        f'[service.s{n}]\nplugin = "ecco"\nlisten = "tcp://[::1]:70000"\nuser = "rooot"\n'
        f'baklog = 1\n[service.q{n}]\nplugin = "qotd"\nlisten = "unix://@{n}"\n'
        f"options = {{ quots = 1, quotes = 5 }}\nenabled = false"
        for n in range(8)
    )
    code, lines = checked(written(tmp_path, entries))
    assert code == 78
    assert len(lines) == 8 * 6
    assert [line.partition("superd.toml:")[2] for line in lines[:6]] == [
        '2:10: service.s0.plugin: there is no plugin "ecco" (did you mean "echo"?)',
        '3:10: service.s0.listen: there is no port 70000 (the last is 65535), found "tcp://[::1]:70000"',
        '4:8: service.s0.user: there is no user "rooot" (did you mean "root"?)',
        '5:1: service.s0.baklog: unknown key (did you mean "backlog"?)',
        '9:13: service.q0.options.quots: unknown key (did you mean "quotes"?)',
        "9:33: service.q0.options.quotes: expected a path, found 5",
    ]  # fmt: skip


def test_the_options_of_a_service_with_mistakes_are_checked_too(
    tmp_path: Path, checked: Checked
) -> None:
    text = '[service.a]\nplugin = "message"\nlisten = 7\n[service.a.options]\nfirst = 1\nx = 2\n'
    _, lines = checked(written(tmp_path, text))
    assert [line.partition("superd.toml:")[2] for line in lines] == [
        '3:10: service.a.listen: expected an address such as "tcp://127.0.0.1:7", found 7',
        "5:9: service.a.options.first: expected a string, found 1",
        "6:1: service.a.options.x: unknown key",
    ]


def test_wrong_options_under_defaults_are_reported_once_and_there(
    tmp_path: Path, checked: Checked
) -> None:
    text = (
        '[defaults]\nplugin = "qotd"\noptions.quotes = "missing"\n'
        '[service.a]\nlisten = "unix://@a"\n[service.b]\nlisten = "unix://@b"\n'
    )
    code, lines = checked(written(tmp_path, text))
    assert lines == [
        f'{tmp_path}/superd.toml:3:18: defaults.options.quotes: cannot read "{tmp_path}/missing":'
        ' No such file or directory, found "missing"'
    ]
    assert code == 78


def test_mistakes_of_an_included_service_are_reported_in_its_file(
    tmp_path: Path, checked: Checked
) -> None:
    included = written(
        tmp_path,
        '[service.q]\nplugin = "qotd"\nlisten = ["unix://@q"]\noptions = {\n  quotes = "gone",\n}',
        "superd.d/q.toml",
    )
    file = written(tmp_path, '[daemon]\ninclude = "superd.d/*.toml"\n')
    _, lines = checked(file)
    assert lines == [
        f"{included}:5:12: service.q.options.quotes:"
        f' cannot read "{tmp_path}/gone": No such file or directory, found "gone"'
    ]


def test_a_quote_file_is_found_beside_the_configuration(tmp_path: Path, checked: Checked) -> None:
    written(tmp_path, "a quote", "etc/quotes")
    text = SERVICE.format("qotd") + 'options = { quotes = "quotes" }\n'
    file = written(tmp_path, text, "etc/superd.toml")
    assert checked(file)[0] == 0


def test_an_address_that_a_plugin_cannot_serve_is_named(
    tmp_path: Path, checked: Checked, install: Install
) -> None:
    install(
        "streams",
        """
        from superd.plugin import Service, hookimpl

        class Streams(Service):
            name = "streams"

            async def stream(self, conn):
                pass

        @hookimpl
        def superd_services():
            return [Streams]
        """,
    )
    text = '[service.a]\nplugin = "streams"\nlisten = ["tcp://[::1]:7-9", "udp://[::1]:7-9"]\n'
    _, lines = checked(written(tmp_path, text))
    assert [line.partition("superd.toml:")[2] for line in lines] == [
        "3:30: service.a.listen[1]: plugin streams does not serve udp, only stream addresses"
    ]


def test_a_log_file_whose_directory_is_missing_is_a_mistake(
    tmp_path: Path, checked: Checked
) -> None:
    (tmp_path / "file").touch()
    text = '[daemon]\nlog = ["stderr", "no/log"]\nrecord-log = "./file/records"\n'
    file = written(tmp_path, text + ECHO.format("a"))
    assert checked(file) == (
        78,
        [
            f"{file}:2:18: daemon.log[1]: cannot log to {tmp_path}/no/log:"
            " No such file or directory",
            f"{file}:3:14: daemon.record-log: cannot log to {tmp_path}/file/records:"
            " Not a directory",
        ],
    )
    (tmp_path / "no").mkdir()
    assert checked(written(tmp_path, text.replace("file/", "") + ECHO.format("a")))[0] == 0


@pytest.mark.root
def test_as_root_check_runs_the_preparation_of_plugins(tmp_path: Path, checked: Checked) -> None:
    text = SERVICE.format("exec") + 'options.command = "/no/such/program"\n'
    file = written(tmp_path, text)
    code, [line] = checked(file)
    assert code == 78
    assert line.endswith(
        ':4:19: service.exec.options.command: there is no program "/no/such/program"'
    )
    assert checked(written(tmp_path, text + "enabled = false\n" + ECHO.format("a")))[0] == 0


@pytest.mark.root
def test_any_user_can_check() -> None:
    with tempfile.TemporaryDirectory() as name:
        file = written(Path(name), ECHO.format("a") + 'user = "root"\nchroot = "/nowhere"\n')
        for path in (file.parent, file):
            path.chmod(0o755)
        load(installed()["echo"])  # what only root may read is read by now

        def job() -> int:
            os.setresuid(65534, 65534, 65534)
            return command.check([file])

        assert run_isolated({"check": job})["check"] == Outcome(0)


def test_without_a_file_the_default_one_is_checked(
    tmp_path: Path, checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, ECHO.format("a"))
    monkeypatch.setenv("SUPERD_CONFIG", str(file))
    assert checked() == (0, ["configuration OK"])
    file.unlink()
    assert checked() == (
        78, [f"{file}: there is no such file; name another with -c FILE or $SUPERD_CONFIG"]
    )  # fmt: skip


BAD_INPUT = {
    "an empty file": ("", "there is no service"),
    "binary garbage": ("\x00\x01\x02[[[", "not TOML"),
    "a port of 70000": (ECHO.format("a").replace("unix://@check-a", "udp://*:70000"), "port 70000"),
    "a user who does not exist": (ECHO.format("a") + 'user = "rooot"', 'no user "rooot"'),
    "an unknown plugin": (ECHO.format("a").replace("echo", "ecco"), 'no plugin "ecco"'),
    "a quote file that is not there": (
        SERVICE.format("qotd") + 'options.quotes = "/none"',
        'cannot read "/none": No such file or directory',
    ),
    "an option of the wrong type": (
        SERVICE.format("message") + "options.first = 5",
        "expected a string, found 5",
    ),
    "a table that is missing": ("[daemon]\n", "there is no service"),
    "an unclosed string": (ECHO.format("a") + 'user = "root', "not TOML"),
}  # fmt: skip


def test_bad_input_is_one_line_and_disturbs_no_daemon(
    start_superd: Start, checked: Checked
) -> None:
    running = start_superd('[service.echo]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n')
    workers, log = running.workers(), running.log()
    own = running.file.read_text().partition("[service")[0]  # its pid file and control socket
    for text, words in BAD_INPUT.values():
        running.file.write_text(text)
        code, [line] = checked(running.file)
        assert code == 78
        assert line.startswith(f"{running.file}:")
        assert words in line
    running.file.write_text(own + ECHO.format("a") + 'user = "rooot"')
    for command_ in ("run", "start"):
        done = running.run(command_)
        assert (done.returncode, done.stdout) == (78, "")
        assert 'there is no user "rooot"' in done.stderr
    assert running.workers() == workers
    assert running.log() == log
    assert exchange(running.connect("echo"), b"still here") == b"still here"
    assert running.run("status").returncode == 0  # its file has a mistake by now, and it answers
    assert running.run("stop").returncode == 0


def checked_by_nobody(text: str) -> list[str]:
    """Return what `superd check` prints, as a user without privileges: the exit code first."""

    def check() -> list[str]:
        os.setresuid(65534, 65534, 65534)
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            code = main(["check", str(file)])
        return [str(code), *err.getvalue().splitlines(), *out.getvalue().splitlines()]

    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        file = written(Path(directory), text)
        file.chmod(0o644)
        outcome = run_isolated({"check": check})["check"]
    assert not outcome.failure
    return [line.replace(f"{directory}/", "") for line in outcome.result]


@pytest.mark.root
def test_check_names_the_ports_that_a_user_cannot_bind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = first_unprivileged_port()
    if start < 20:
        pytest.skip("any user may bind any port here")
    listen = 'listen = ["tcp://*:7", "udp://*:7007", "unix://@check", "tcp://127.0.0.1:9-12"]'
    text = f'[service.echo]\nplugin = "echo"\n{listen}\n'
    remedy = (
        f"below {start}; use a higher port, or run superd as root or with CAP_NET_BIND_SERVICE"
        " (AmbientCapabilities= in a unit of systemd)"
    )
    assert checked_by_nobody(text) == [
        "0",
        f"superd: as this user: superd.toml:3:11: service.echo.listen[0]: port 7 is {remedy}",
        f"superd: as this user: superd.toml:3:57: service.echo.listen[3]: some ports are {remedy}",
        "configuration OK",
    ]
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert checked_by_nobody(text) == ["0", "configuration OK"]


@pytest.mark.root
def test_check_creates_no_file(tmp_path: Path, superd_here: Say) -> None:
    options = 'output = "knocks.jsonl", pcap = "knocks.pcap", files = 3, capture = {}'
    entry = f'[service.s]\nplugin = "sniffer"\nlisten = "tcp://*:7"\noptions = {{ {options} }}\n'
    file = written(tmp_path, entry)
    assert superd_here("check", str(file)).stdout == "configuration OK\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["superd.toml"]
    written(tmp_path, entry.replace('"knocks.pcap"', '"missing/knocks.pcap"'))
    done = superd_here("check", str(file))
    message = "plugin sniffer failed in prepare: No such file or directory: "
    assert (done.returncode, done.stderr.count(message)) == (78, 1)


@pytest.mark.parametrize(
    "mistake",
    ['listen = "tcp6://*:9501"', 'listen = "udp://127.0.0.1:70000"', 'listen = []',
     'listen = "unixpacket:///x"\nwait = "yes"'],
)  # fmt: skip
def test_one_mistake_in_an_entry_does_not_blame_an_option(
    tmp_path: Path, checked: Checked, mistake: str
) -> None:
    """The plugin checks its options against the entry, which is incomplete then."""
    text = f'[service.web]\nplugin = "forward"\n{mistake}\noptions = {{ to = "127.0.0.1:80" }}\n'
    code, lines = checked(written(tmp_path, text))
    assert code == 78
    assert len(lines) == 1
    assert "options" not in lines[0]
