"""The same programs under xinetd and superd: clients see no difference but those tested here.

Both run the programs as the user nobody, one for each connection, and have the same environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.clients import connect_tcp, receive_to_end, reset
from tests.support.harness import Superd, is_alive, until
from tests.support.proc import children
from tests.support.programs import public_directory, random_bytes, script
from tests.support.xinetd import Xinetd

pytestmark = [pytest.mark.root, pytest.mark.tool("xinetd"), pytest.mark.slow]

LIBC_SIGNALS = 0x1_8000_0000  # two internal signals, which posix_spawn(3) leaves ignored

PROGRAMS = {"cat": "/bin/cat", "env": "/usr/bin/env", "default-env": "/usr/bin/env"}
SCRIPTS = {
    "answers": 'read line; echo "you said $line"; read line || echo "and no more"',
    "complains": "echo one; echo two >&2; echo three",
    "rude": "echo one; echo two >&2; echo three",
    "waits": 'read line; echo "$line"',
    "exits": "echo before; exit 3",
    "dies": "echo before; kill -9 $$",
    "silent": "exit 0",
    "flood": "while :; do echo y; done",
    "much": "yes | head -c 1000000",
    "closes": "exec 0<&- 1>&- 2>&-; exec sleep 600",
    "vanishes": "echo still here",
    "place": "umask; pwd; id",
    "state": "(cat /proc/$$/stat /proc/$$/status); exit",
    "open": 'for fd in /proc/$$/fd/*; do [ -e "$fd" ] &&'
    ' echo "${fd##*/} $(readlink "$fd") $(grep flags: "/proc/$$/fdinfo/${fd##*/}")"; done',
}
SUPERD = """
[service.{name}]
plugin = "exec"
listen = "tcp://127.0.0.1:0"
umask = "022"
options = {{ command = "{program}", stderr = "{stderr}" }}
"""


@dataclass(frozen=True)
class Pair:
    """xinetd and superd with the same programs."""

    superd: Superd
    xinetd: Xinetd
    programs: dict[str, Path]

    def connect(self, name: str) -> tuple[socket.socket, socket.socket]:
        """Connect to each; return xinetd's connection first."""
        return connect_tcp(self.xinetd.address(name)), self.superd.connect(name)

    def both(self, name: str, data: bytes = b"") -> list[tuple[bytes, str]]:
        """Send data to each; return each answer and how it ended, xinetd's first."""
        answers = []
        with contextlib.ExitStack() as stack:
            for client in map(stack.enter_context, self.connect(name)):
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                answers.append(receive_to_end(client))
        return answers

    def outcomes(self, name: str) -> tuple[str, str]:
        """Return the recorded outcomes of the last program, xinetd's first."""

        def recorded() -> str | None:
            ended = self.superd.records(name, "closed")
            return ended[-1]["outcome"] if ended else None

        ours = until(recorded, f"the record of the end of {name}")
        theirs = self.xinetd.wait_for_log(rf"EXIT: {name} (.*) pid=\d+ duration=")
        return theirs[1], ours


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with public_directory() as directory, pair_in(directory) as found:
        yield found


@contextlib.contextmanager
def pair_in(directory: Path) -> Iterator[Pair]:
    programs = {name: Path(program) for name, program in PROGRAMS.items()}
    programs |= {name: script(directory, name, text) for name, text in SCRIPTS.items()}
    env = {"LEAKENV": "secret"}
    toml = "".join(
        SUPERD.format(name=name, program=one, stderr="client" if name == "rude" else "log")
        for name, one in programs.items()
    )
    log = f'[daemon]\nrecord-log = "{directory}/records"\nrecord-format = "json"\n'
    superd = Superd(directory, log + toml, env=env)
    try:
        superd.start()
        with Xinetd.running(directory, programs, env, pass_all=["default-env"]) as xinetd:
            yield Pair(superd, xinetd, programs)
    finally:
        superd.stop()
        print(f"--- log of {superd.file}\n{superd.log()}")


def lines_of(answers: list[tuple[bytes, str]]) -> list[list[str]]:
    """Return the lines of both answers; check that both ended with a FIN."""
    assert [how for _, how in answers] == ["fin", "fin"]
    return [data.decode().splitlines() for data, _ in answers]


def variables(lines: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


@pytest.mark.parametrize(
    ("name", "data", "answer"),
    [
        ("cat", random_bytes(50_000), random_bytes(50_000)),
        ("answers", b"hello\n", b"you said hello\nand no more\n"),
        ("answers", b"hello", b"you said hello\nand no more\n"),
        ("exits", b"", b"before\n"),
        ("dies", b"", b"before\n"),
        ("silent", b"", b""),
        ("much", b"", b"y\n" * 500_000),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_client_gets_the_same_answer_from_both(
    pair: Pair, name: str, data: bytes, answer: bytes
) -> None:
    assert pair.both(name, data) == [(answer, "fin")] * 2


def test_unread_input_resets_the_connection_under_xinetd_only(pair: Pair) -> None:
    for client, end in zip(pair.connect("waits"), ("reset", "fin"), strict=True):
        with client:
            client.sendall(b"one\ntwo\n" * 1000)
            assert client.recv(100) == b"one\n"
            assert receive_to_end(client) == (b"", end)


def test_a_program_has_the_same_directory_user_and_umask_under_both(pair: Pair) -> None:
    theirs, ours = lines_of(pair.both("place"))
    assert ours[:2] == theirs[:2] == ["0022", "/"]
    assert [line.partition(" groups=")[0] for line in (ours[2], theirs[2])] == [
        "uid=65534(nobody) gid=65534(nogroup)"
    ] * 2


def test_superd_passes_more_variables_about_the_client_and_leaks_none(pair: Pair) -> None:
    """xinetd has `passenv =` here. Without it, a program gets xinetd's whole environment."""
    theirs, ours = map(variables, lines_of(pair.both("env")))
    assert theirs == {"REMOTE_HOST": "127.0.0.1"}
    assert theirs.items() <= ours.items()
    assert "LEAKENV" not in ours


def test_xinetd_passes_its_environment_on_by_default_and_superd_does_not(pair: Pair) -> None:
    (theirs, _), (ours, _) = pair.both("default-env")
    assert b"LEAKENV=secret" in theirs
    assert b"LEAKENV" not in ours


def test_a_program_has_the_same_descriptors_except_for_standard_error(pair: Pair) -> None:
    program = str(pair.programs["open"])  # the shell itself has it open
    theirs, ours = (
        [line.split() for line in lines if program not in line]
        for lines in lines_of(pair.both("open"))
    )
    for found in (theirs, ours):
        assert [number for number, *_ in found] == ["0", "1", "2"]
        assert found[0][1].startswith("socket:")
        assert found[0][1] == found[1][1]
        assert {flags for *_, flags in found[:2]} == {"02"}  # O_RDWR, without O_NONBLOCK
    assert theirs[2][1] == theirs[0][1]  # the client's
    assert ours[2][1].startswith("pipe:")  # the log's


def test_a_program_has_its_own_session_and_no_signal_blocked_or_ignored(pair: Pair) -> None:
    for lines in lines_of(pair.both("state")):
        number, _, rest = lines[0].partition(" ")
        assert rest.rpartition(") ")[2].split()[2:5] == [number, number, "0"]
        status = variables([line.replace(":\t", "=") for line in lines[1:]])
        assert int(status["SigBlk"], 16) == int(status["SigIgn"], 16) & ~LIBC_SIGNALS == 0


def test_superd_drops_all_privileges_permanently_and_xinetd_only_changes_the_user(
    pair: Pair,
) -> None:
    theirs, ours = (
        variables([line.replace(":\t", "=") for line in lines[1:]])
        for lines in lines_of(pair.both("state"))
    )
    assert (theirs["NoNewPrivs"], ours["NoNewPrivs"]) == ("0", "1")
    assert int(theirs["CapBnd"], 16) > int(ours["CapBnd"], 16) == 0
    assert int(theirs["CapEff"], 16) == int(ours["CapEff"], 16) == 0


def test_xinetd_sends_standard_error_to_the_client_and_superd_only_if_configured(
    pair: Pair,
) -> None:
    theirs, ours = lines_of(pair.both("complains"))
    assert theirs == ["one", "two", "three"]
    assert ours == ["one", "three"]
    pair.superd.wait_for_log("warning: two service=complains ")
    theirs, ours = lines_of(pair.both("rude"))
    assert theirs == ours == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("silent", "status=0", "status 0"),
        ("exits", "status=3", "status 3"),
        ("dies", "signal=9", "signal 9"),
        ("flood", "signal=13", "signal 13"),
    ],
)
def test_both_record_how_a_program_ended(pair: Pair, name: str, theirs: str, ours: str) -> None:
    for client in pair.connect(name):
        if name == "flood":  # only a reset by its client ends it
            assert client.recv(2) == b"y\n"
            reset(client)
        else:
            receive_to_end(client)
            client.close()
    assert pair.outcomes(name)[0] == theirs
    assert pair.outcomes(name)[1].startswith(f"{ours}, ")


def test_a_client_sees_the_end_when_a_running_program_closes_its_descriptors(
    pair: Pair,
) -> None:
    assert pair.both("closes") == [(b"", "fin")] * 2
    (worker,) = pair.superd.workers()
    assert any(map(is_alive, children(worker)))
    theirs = int(pair.xinetd.wait_for_log(r"START: closes pid=(\d+)")[1])
    assert is_alive(theirs)
    os.kill(theirs, signal.SIGKILL)  # unlike superd, xinetd does not end it when it stops


def test_a_removed_program_is_a_success_for_xinetd_and_an_error_for_superd(
    pair: Pair,
) -> None:
    assert pair.both("vanishes") == [(b"still here\n", "fin")] * 2
    pair.programs["vanishes"].unlink()
    assert pair.both("vanishes") == [(b"", "fin")] * 2
    pair.superd.wait_for_log(r"cannot run .*/vanishes: No such file or directory \(exit 127\)")
    pair.xinetd.wait_for_log(r"(?s)execv\(.*/vanishes \) failed.*EXIT: vanishes status=0 ")
