"""`superd try`: a plugin serves on 127.0.0.1 without a file, or one line says why it cannot."""
# ruff: noqa: E501  (a row of a table is a case)

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from superd.cli.attempt import entry, free_ports, toml_value
from superd.errors import UsageError
from tests.cli.conftest import Install, Say
from tests.support.harness import EVENT_TIMEOUT, ask_udp, command, exchange, read_lines, until
from tests.support.programs import output

Trial = subprocess.Popen[str]


@pytest.fixture
def started() -> Iterator[list[Trial]]:
    """Collect the processes that a test starts; stop them after the test."""
    trials: list[Trial] = []
    yield trials
    for trial in trials:
        trial.send_signal(signal.SIGTERM)
        assert trial.wait(EVENT_TIMEOUT) == 0
        assert trial.stdout is not None
        trial.stdout.close()


def tried(started: list[Trial], directory: Path, *arguments: str) -> dict[str, tuple[str, int]]:
    """Start `superd try` and return its addresses by transport."""
    trial = subprocess.Popen(
        command("try", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=directory,
    )
    started.append(trial)
    assert trial.stdout is not None
    found: dict[str, tuple[str, int]] = {}
    for line in read_lines(trial.stdout):
        if line == "ready":
            return found
        if match := re.match(r"\S+ +(tcp|udp)://([0-9.]+):(\d+) +try: ", line):
            found[match[1]] = (match[2], int(match[3]))
    raise AssertionError("it ended")


def lines_to_try(started: list[Trial], directory: Path, *arguments: str) -> list[str]:
    """Start `superd try` and return the lines that it prints to try its addresses."""
    trial = subprocess.Popen(
        command("try", *arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, cwd=directory,
    )  # fmt: skip
    started.append(trial)
    assert trial.stdout is not None
    printed: list[str] = []
    for line in read_lines(trial.stdout):
        if line == "ready":
            return printed
        printed.append(line.partition("try: ")[2])
    raise AssertionError("superd ended before it was ready")


@pytest.mark.parametrize(
    ("plugin", "options", "answer"),
    [
        ("echo", [], r"hello\n"),
        ("discard", [], ""),
        # by udp chargen answers with a random number of characters, maybe none
        ("chargen", ["listen=tcp://127.0.0.1:0"], r" !\"#\$%"),
        ("daytime", [], r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9]{2} [0-9:]{8} \d{4}\r\n"),
        ("time", [], r"(?s)...."),
        ("qotd", [], r"\S+ "),
        ("message", [], r".+\n?"),
        ("metrics", [], "HTTP/1.1 400 "),
        ("exec", ['command=["/bin/cat"]', "listen=tcp://127.0.0.1:0"], r"hello\n"),
        ("forward", ["to=ECHO"], r"hello\n"),
        ("sniffer", ["capture={}"], ""),
        ("tcpmux", [], "-"),
    ],
)
def test_the_line_to_try_works_as_printed(
    started: list[Trial], tmp_path: Path, plugin: str, options: list[str], answer: str
) -> None:
    echo = lines_to_try(started, tmp_path, "echo")[0].rpartition(" ")[2]
    lines = lines_to_try(started, tmp_path, plugin, *(o.replace("ECHO", echo) for o in options))
    assert lines
    for line in lines:
        with subprocess.Popen(
            ["sh", "-c", f"exec {line}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(b"hello\n")
            client.stdin.close()
            try:
                heard = os.read(client.stdout.fileno(), 100).decode("latin-1")
            finally:
                client.kill()
        assert re.match(answer, heard) if answer else not heard, (line, heard)


def test_a_plugin_is_served_on_loopback_over_all_its_transports(
    started: list[Trial], tmp_path: Path
) -> None:
    where = tried(started, tmp_path, "echo")
    assert {host for host, _ in where.values()} == {"127.0.0.1"}
    with_client = connection(where["tcp"])
    assert exchange(with_client, b"hello") == b"hello"
    assert ask_udp(where["udp"], b"hello") == b"hello"


def test_options_and_keys_of_an_entry_are_given_by_name(
    started: list[Trial], tmp_path: Path
) -> None:
    (tmp_path / "quotes").write_text("just the one\n")
    where = tried(started, tmp_path, "qotd", "quotes=quotes", "amplify=true")
    assert exchange(connection(where["tcp"]), b"") == b"just the one\r\n"
    assert ask_udp(where["udp"], b"") == b"just the one\r\n"


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("scheme", ["", "tcp://", "udp://"])
def test_one_line_forwards_over_all_transports_of_the_target(
    started: list[Trial], tmp_path: Path, transport: str, scheme: str
) -> None:
    host, port = tried(started, tmp_path, "echo", f"listen={transport}://127.0.0.1:0")[transport]
    where = tried(started, tmp_path, "forward", f"to={scheme}{host}:{port}")
    assert set(where) == ({scheme.removesuffix("://")} if scheme else {"tcp", "udp"})
    if transport in where:
        assert echoed(where, transport) == b"hello"


def test_one_line_forwards_from_a_given_address(started: list[Trial], tmp_path: Path) -> None:
    host, port = tried(started, tmp_path, "echo")["udp"]
    listen = "listen=udp://127.0.0.1:0"
    where = tried(started, tmp_path, "forward", f"to={host}:{port}", listen)
    assert set(where) == {"udp"}
    assert echoed(where, "udp") == b"hello"


def echoed(where: dict[str, tuple[str, int]], transport: str) -> bytes:
    if transport == "udp":
        return ask_udp(where["udp"], b"hello")
    return exchange(connection(where["tcp"]), b"hello")


@pytest.mark.tool("ps")
def test_ps_shows_client_and_target_of_each_connection(
    started: list[Trial], tmp_path: Path
) -> None:
    host, port = tried(started, tmp_path, "echo", "listen=tcp://127.0.0.1:0")["tcp"]
    where = tried(started, tmp_path, "forward", f"to={host}:{port}")
    master = started[-1].pid

    def titles() -> str:
        return output("ps", "-ww", "-o", "args=", "--ppid", str(master)).decode()

    with connection(where["tcp"]) as client:
        source, number = client.getsockname()
        shown = f"{source}:{number} > tcp://{host}:{port}"
        until(lambda: shown in titles(), "the connection in the title")
        more: list[socket.socket] = []

        def is_cut() -> bool:
            more.append(connection(where["tcp"]))  # a title has as much room as the environment
            return re.search(r" and \d+ more$", titles(), re.MULTILINE) is not None

        try:
            until(is_cut, "a title with the number of further connections")
        finally:
            for one in more:
                one.close()
    until(lambda: " > " not in titles(), "a title without connections")


def connection(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=EVENT_TIMEOUT)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["ehco"], 'superd try ehco: plugin: there is no plugin "ehco" (did you mean "echo"?)'),
        (["echo", "colour=red"], "superd try echo: colour: unknown key"),
        (["qotd", "qotes=x"], 'superd try qotd: qotes: unknown key (did you mean "quotes"?)'),
        (["qotd", "quotes=/none"], 'superd try qotd: quotes: cannot read "/none": No such file or directory'),
        (["qotd", "quotes=5"], "superd try qotd: quotes: expected a path, found 5"),
        (["message", 'first=["a"]'], "superd try message: first: expected a string, found an array"),
        (["echo", "nice=99"], "superd try echo: nice: expected an integer of at most 19, found 99"),
        (["echo", "user=rooot"], 'superd try echo: user: there is no user "rooot" (did you mean "root"?)'),
        (["echo", "listen=tcp://127.0.0.1:70000"], 'superd try echo: listen: there is no port 70000 (the last is 65535), found "tcp://127.0.0.1:70000"'),
        (["echo", 'listen=["unix://@a", "x"]'], 'superd try echo: listen[1]: expected an address that starts with one of tcp://, udp://, unix://, unixgram://, unixpacket://, tcpmux://, found "x"'),
        (["forward", "to=tcp://127.0.0.1:1", "listen=udp://127.0.0.1:0"], "superd try forward: to: no target accepts datagrams, but the service listens on udp; add one that starts with udp:// or unixgram://"),
        (["echo", "nice=1", "nice=2"], "superd try echo: nice: expected an integer, found an array"),
        (["qotd", "quotes=a", "quotes=b"], "superd try qotd: quotes: expected a path, found an array"),
        (["\x1b[2J"], 'superd try \\x1b[2J: a service\'s name has letters, digits and . _ + - only, 64 at most, and starts with a letter or digit'),
    ],
)  # fmt: skip
def test_a_mistake_in_the_arguments_is_one_line(
    superd_here: Say, arguments: list[str], line: str
) -> None:
    done = superd_here("try", *arguments)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (78, "", line)


def test_a_key_that_is_given_several_times_has_all_its_values(
    started: list[Trial], tmp_path: Path
) -> None:
    found = tried(started, tmp_path, "echo", "listen=tcp://127.0.0.1:0", "listen=udp://127.0.0.1:0")
    assert set(found) == {"tcp", "udp"}
    assert entry("echo", ["allow=::1", 'allow=["192.0.2.1", "x"]', "a=1", "a=2", "a=3"]) == {
        "plugin": "echo",
        "options": {"a": [1, 2, 3]},
        "allow": ["::1", "192.0.2.1", "x"],
        "listen": free_ports("echo"),
    }


def test_all_mistakes_are_reported_at_once(superd_here: Say) -> None:
    done = superd_here("try", "qotd", "quotes=1", "qotes=2", "nice=99")
    assert len(done.stderr.splitlines()) == 3


def test_a_broken_plugin_is_an_error_with_the_reason(install: Install, superd_here: Say) -> None:
    install("dies", "import os; os.abort()")
    done = superd_here("try", "dies")
    assert (done.returncode, done.stderr) == (
        78,
        "superd try dies: plugin: plugin dies: its process was ended by SIGABRT\n",
    )


def test_a_key_that_conflicts_is_named_even_if_it_was_not_given(
    install: Install, superd_here: Say
) -> None:
    install(
        "picky",
        """
        from superd.plugin import Options, Service, WrongOption, hookimpl

        class PickyOptions(Options):
            key: str = "wait"

        class Picky(Service):
            name = "picky"
            options_model = PickyOptions

            def check(self, entry):
                raise WrongOption(self.options.key, "not here")

            def respond(self, request):
                return b""

        @hookimpl
        def superd_services():
            return [Picky]
        """,
    )
    assert superd_here("try", "picky").stderr == "superd try picky: wait: not here\n"
    done = superd_here("try", "picky", "key=key")
    assert done.stderr == "superd try picky: key: not here\n"
    done = superd_here("try", "picky", "key=absent")
    assert done.stderr == "superd try picky: absent: not here\n"


def test_an_argument_without_a_value_is_a_usage_error(superd_here: Say) -> None:
    done = superd_here("try", "echo", "amplify")
    assert (done.returncode, done.stderr) == (2, 'superd: expected KEY=VALUE, found "amplify"\n')


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("5", 5),
        ("1.5", 1.5),
        ('"5"', "5"),
        ("plain text", "plain text"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
        ('["a", 1]', ["a", 1]),
        ("{ a = 1 }", {"a": 1}),
        ("", ""),
        ("1\nother = 2", "1\nother = 2"),
        ("[" * 5000, "[" * 5000),
        ("9" * 5000, "9" * 5000),
        ("a=b=c", "a=b=c"),
    ],
)
def test_a_value_is_toml_or_else_a_string(text: str, value: object) -> None:
    assert toml_value(text) == value


def test_a_known_key_belongs_to_the_entry_and_any_other_to_the_options() -> None:
    made = entry("echo", ["backlog=5", "colour=red", "options=x", "plugin=y", "a=b=c"])
    assert made == {
        "plugin": "echo",
        "backlog": 5,
        "options": {"colour": "red", "options": "x", "plugin": "y", "a": "b=c"},
        "listen": ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"],
    }
    with pytest.raises(UsageError):
        entry("echo", ["x"])


def test_a_plugin_of_unknown_kind_is_tried_over_tcp() -> None:
    assert free_ports("no-such") == ["tcp://127.0.0.1:0"]
