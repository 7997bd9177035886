"""However superd stops, no process that it or one of its programs has started is left; and a record
says of a program no more than what is known.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.harness import Record, Superd, is_alive, make_plugin, until
from tests.support.proc import children, descendants

# Starts a process in a session of its own, without the client's socket, and prints both pids.
DAEMON = "setsid sleep 600 < /dev/null > /dev/null 2>&1 & echo $$ $!"
LISTENS = "use Socket; $SIG{TERM} = 'IGNORE'; while (accept(C, STDIN)) { syswrite C, $$; close C }"
STUBBORN = "trap '' TERM"

TOML = (
    """
[daemon]
record-log = "./records"
record-format = "json"
drain-timeout = "300ms"

[defaults]
plugin = "exec"
listen = "tcp://127.0.0.1:0"

[service.stays]
options = { command = ["sh", "-c", "{stubborn}; {daemon}; while :; do sleep 0.05; done"] }

[service.leaves]
options = { command = ["sh", "-c", "{daemon}"] }

[service.listens]
wait = true
options = { command = ["perl", "-e", "{listens}"] }
""".replace("{listens}", LISTENS)
    .replace("{daemon}", DAEMON)
    .replace("{stubborn}", STUBBORN)
)

pytestmark = pytest.mark.tool("perl", "setsid")


def pids_from(served: Superd, service: str) -> list[int]:
    with served.connect(service) as client:
        return [int(word) for word in client.makefile().readline().split()]


def all_closed(served: Superd) -> list[Record]:
    return served.records(event="closed")


@pytest.fixture
def served(start_superd: Start) -> Superd:
    return start_superd(TOML)


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGTERM,),
        (signal.SIGINT,),
        (signal.SIGQUIT,),
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT),
    ],
    ids=lambda signals: "-".join(one.name for one in signals),
)
def test_a_stop_ends_every_process_and_its_record_says_how(
    served: Superd, signals: tuple[signal.Signals, ...]
) -> None:
    with served.connect("stays") as client:
        stays = [int(word) for word in client.makefile().readline().split()]
        left = pids_from(served, "leaves")
        listens = pids_from(served, "listens")
        for number in signals:
            served.signal(number)
        assert served.wait() == 0
    assert not [pid for pid in (*stays, *left, *listens) if is_alive(pid)]
    outcomes = {one["service"]: one["outcome"] for one in all_closed(served)}
    assert outcomes["leaves"].startswith("status 0, ")
    for service in ("stays", "listens"):
        assert outcomes[service].startswith("ended by superd; signal 9, ")


@pytest.mark.parametrize("victim", ["program", "worker"])
def test_what_a_program_has_left_runs_until_superd_stops(served: Superd, victim: str) -> None:
    with served.connect("stays") as client:
        program, daemon = (int(word) for word in client.makefile().readline().split())
        _, other = pids_from(served, "leaves")
        if victim == "program":
            [row] = served.answer("connections", service="stays")["connections"]
            assert served.answer("kill", id=row["id"]) == {}
            until(lambda: not is_alive(program), "the end of the program")
        else:
            (worker,) = served.workers()
            os.kill(worker, signal.SIGKILL)
            served.wait_for_log("its successor starts now")
            assert is_alive(program)
    assert is_alive(daemon)
    assert is_alive(other)
    served.signal(signal.SIGTERM)
    assert served.wait() == 0
    assert not [pid for pid in (program, daemon, other) if is_alive(pid)]


def test_an_upgraded_superd_ends_what_programs_had_left_before(served: Superd) -> None:
    _, daemon = pids_from(served, "leaves")
    done = served.run("upgrade")
    assert done.returncode == 0, done.stderr
    assert is_alive(daemon)
    served.signal(signal.SIGTERM)
    assert served.wait() == 0
    assert not is_alive(daemon)


STARTS_A_PROCESS = """
    import subprocess
    from superd.plugin import Service, hookimpl

    class Starts(Service):
        name = "starts"

        def respond(self, request):
            return b""

        def start(self):
            sleep = subprocess.Popen(["sleep", "600"], start_new_session=True)
            with open("{directory}/pids", "a") as file:
                file.write(f"{sleep.pid}\\n")
            raise RuntimeError("it cannot start")

    @hookimpl
    def superd_services():
        return [Starts]
    """


def test_a_start_that_fails_leaves_no_process(tmp_path: Path) -> None:
    toml = '[service.x]\nplugin = "starts"\nlisten = "tcp://127.0.0.1:0"\nuser = "root"\n'
    source = STARTS_A_PROCESS.replace("{directory}", str(tmp_path))
    env = make_plugin(tmp_path / "plugins", "starts", source)
    superd = Superd(tmp_path, toml, env=env).launch()
    assert superd.wait() != 0
    superd.stop()
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert pids
    assert not [pid for pid in pids if is_alive(pid)]


def test_a_stop_ends_no_process_that_superd_has_not_started(tmp_path: Path) -> None:
    """Such as one that a script started before it executed superd."""
    superd = Superd(tmp_path, TOML.replace("./records", str(tmp_path / "records")))
    script = 'sleep 600 > /dev/null 2>&1 & echo $! > "$1"; shift; exec "$@"'
    superd.start("sh", "-c", script, "sh", str(tmp_path / "earlier"))
    earlier = int((tmp_path / "earlier").read_text())
    try:
        _, daemon = pids_from(superd, "leaves")
        assert superd.run("upgrade").returncode == 0
        superd.signal(signal.SIGTERM)
        assert superd.wait() == 0
        assert not is_alive(daemon)
        assert is_alive(earlier)
    finally:
        superd.stop()
        os.kill(earlier, signal.SIGKILL)


@pytest.mark.root
@pytest.mark.tool("unshare")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
def test_as_process_1_superd_leaves_no_process(start_superd: Start, number: signal.Signals) -> None:
    served = start_superd(TOML, "unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    pids_from(served, "leaves")
    pids_from(served, "listens")
    assert served.process is not None
    (master,) = children(served.process.pid)
    left = descendants(master)
    os.kill(master, number)
    assert served.wait() == 0
    assert not [pid for pid in left if is_alive(pid)]
    assert served.log().splitlines()[-1].endswith("info: stopped")
