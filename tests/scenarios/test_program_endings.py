"""The end of a connection that a program serves: no answer is lost, and no process is disturbed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import connect_unix, receive_to_end
from tests.support.harness import EVENT_TIMEOUT, Superd, is_alive, receive_all, until
from tests.support.proc import children, descriptors

ANSWER_BYTES = 60_000  # fits into the sending socket's buffer, and not into the client's
UNREAD = b"GET / HTTP/1.0\r\n\r\n"

ANSWER = f"head -c {ANSWER_BYTES} /dev/zero"
LATER = f"read line <&3; {ANSWER}"
LINGERS = 'use Socket; setsockopt(STDOUT, SOL_SOCKET, SO_LINGER, pack("ii", 1, %d));'

PROGRAMS = {
    "answer": ["sh", "-c", ANSWER],
    "line": ["sh", "-c", f"read line; {ANSWER}"],
    "child": ["sh", "-c", f"exec 3<&0; ({LATER}) & echo gone"],
    "setsid": ["sh", "-c", f"exec 3<&0; setsid sh -c '{LATER}' 2>/dev/null & echo gone"],
    "closes": ["sh", "-c", "echo done; exec 0<&- 1>&- 2>&-; exec sleep 600"],
    "job": ["sh", "-c", "sleep 600 </dev/null >/dev/null 2>&1 & echo $!"],
    "patient": ["perl", "-e", f'{LINGERS % 30} syswrite STDOUT, "x" x {ANSWER_BYTES}'],
    "resets": ["perl", "-e", f'{LINGERS % 0} syswrite STDOUT, "x"'],
}

TOML = """
[daemon]
record-log = "{directory}/records"
record-format = "json"

[defaults]
plugin = "exec"

[service.timed]
options = { command = ["sh", "-c", '''{answer}'''] }
listen = "tcp://127.0.0.1:0"
idle-timeout = "1m"

[service.mux]
plugin = "tcpmux"
listen = "tcp://127.0.0.1:0"

[service.one]
listen = "tcpmux://one"
options = { command = ["sh", "-c", '''{answer}'''] }
""" + "".join(
    f"""
[service.{name}]
listen = ["tcp://127.0.0.1:0", "unix://{{directory}}/{name}"]
options = {{ command = [{", ".join(f"'''{word}'''" for word in command)}] }}
"""
    for name, command in PROGRAMS.items()
)
TOML = TOML.replace("{answer}", ANSWER)

pytestmark = pytest.mark.tool("perl", "setsid")


def connect(served: Superd, service: str, transport: str = "tcp") -> socket.socket:
    """Connect with a small receive buffer, so that most of an answer stays with superd's kernel."""
    if transport == "unix":
        return connect_unix(served.directory / service)
    client = socket.socket()
    client.settimeout(EVENT_TIMEOUT)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(served.address(service))
    return client


def wait_for_end_of_programs(served: Superd) -> None:
    (worker,) = served.workers()
    until(lambda: not children(worker), "the end of the programs")


@pytest.mark.parametrize(
    ("service", "transport"), [("answer", "tcp"), ("answer", "unix"), ("timed", "tcp")]
)
def test_the_answer_of_a_program_that_does_not_read_its_input_is_complete(
    served: Superd, service: str, transport: str
) -> None:
    with connect(served, service, transport) as client:
        client.sendall(UNREAD)
        wait_for_end_of_programs(served)
        assert receive_to_end(client) == (bytes(ANSWER_BYTES), "fin")


def test_input_that_arrives_after_the_end_of_the_program_costs_no_answer(served: Superd) -> None:
    with connect(served, "line") as client:
        client.sendall(b"GET / HTTP/1.0\r\n")
        wait_for_end_of_programs(served)
        client.sendall(b"Host: a.example\r\n\r\n")
        assert receive_to_end(client) == (bytes(ANSWER_BYTES), "fin")


def test_the_answer_of_a_program_behind_tcpmux_is_complete(served: Superd) -> None:
    with connect(served, "mux") as client:
        client.sendall(b"one\r\n" + UNREAD)
        assert client.recv(5) == b"+Go\r\n"
        wait_for_end_of_programs(served)
        assert receive_to_end(client) == (bytes(ANSWER_BYTES), "fin")


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("service", ["child", "setsid"])
def test_a_process_that_outlives_its_program_keeps_the_connection(
    served: Superd, service: str, transport: str
) -> None:
    """It reads and writes, and its answer is not lost either."""
    with connect(served, service, transport) as client:
        assert client.recv(5) == b"gone\n"
        wait_for_end_of_programs(served)
        assert served.counts(service)["active"] == 1
        client.sendall(b"go\n" + UNREAD)
        assert receive_to_end(client) == (bytes(ANSWER_BYTES), "fin")
    served.wait_until_idle(service)


def test_such_a_connection_can_be_killed(served: Superd) -> None:
    with connect(served, "setsid") as client:
        assert client.recv(5) == b"gone\n"
        wait_for_end_of_programs(served)
        (row,) = served.answer("connections", service="setsid")["connections"]
        assert served.run("kill", row["id"]).returncode == 0
        assert receive_to_end(client)[0] == b""
    until(
        lambda: "killed" in [one["end"] for one in served.records("setsid", "closed")], "a record"
    )


def test_superd_stops_while_such_a_process_has_a_connection(start_superd: Start) -> None:
    served = start_superd(
        f"""
        [daemon]
        drain-timeout = "300ms"

        [service.child]
        plugin = "exec"
        listen = "tcp://127.0.0.1:0"
        options = {{ command = ["sh", "-c", "exec 3<&0; ({LATER}) & echo gone"] }}
        """
    )
    with connect(served, "child") as client:
        assert client.recv(5) == b"gone\n"
        served.signal(signal.SIGTERM)
        assert served.wait() == 0
        assert len(receive_to_end(client)[0]) < ANSWER_BYTES


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_a_client_sees_the_end_when_the_program_has_closed_its_socket(
    served: Superd, transport: str
) -> None:
    (worker,) = served.workers()
    with connect(served, "closes", transport) as client:
        client.sendall(UNREAD)
        assert receive_to_end(client) == (b"done\n", "fin")
        programs = children(worker)
        assert programs
        assert served.counts("closes")["active"] == 1
    for pid in programs:
        os.kill(pid, signal.SIGTERM)
    served.wait_until_idle("closes")


def test_a_background_job_without_the_socket_does_not_keep_the_client(served: Superd) -> None:
    with connect(served, "job") as client:
        client.sendall(UNREAD)
        answer, how = receive_to_end(client)
    try:
        assert how == "fin"
        assert is_alive(int(answer))
        served.wait_until_idle("job")
    finally:
        os.kill(int(answer), signal.SIGKILL)


def test_a_program_cannot_make_the_worker_block_in_close(served: Superd) -> None:
    """SO_LINGER belongs to the socket, which superd closes after the program."""
    with connect(served, "patient") as client:
        client.shutdown(socket.SHUT_WR)
        wait_for_end_of_programs(served)
        with connect(served, "answer") as other:
            assert len(receive_all(other)) == ANSWER_BYTES


def test_a_program_can_ask_for_a_reset(served: Superd) -> None:
    try:
        with connect(served, "resets") as client:
            end = receive_to_end(client)[1]
    except ConnectionResetError:  # connect(2) may report it already
        end = "reset"
    assert end == "reset"


def test_connections_of_programs_leave_no_descriptor_behind(served: Superd) -> None:
    (worker,) = served.workers()
    wait_for_end_of_programs(served)
    before = len(descriptors(worker))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(served, "answer")) for _ in range(50)]
        for client in clients:
            client.sendall(UNREAD)
        for client in clients:
            assert receive_to_end(client) == (bytes(ANSWER_BYTES), "fin")
    until(lambda: len(descriptors(worker)) <= before, "the closing of all descriptors")


@pytest.mark.root
@pytest.mark.tool("unshare", "mount")
def test_without_proc_no_answer_is_cut_and_no_process_is_disturbed(
    start_superd: Start, tmp_path: Path
) -> None:
    """As in a jail: superd cannot know there whether another process has the socket."""
    hide = 'mount -t tmpfs none /proc && exec "$@"'
    toml = TOML.replace("{directory}", str(tmp_path))
    served = start_superd(toml, "unshare", "-m", "sh", "-c", hide, "sh")
    with connect(served, "setsid") as client:
        assert client.recv(5) == b"gone\n"
        client.sendall(b"go\n")
        assert receive_to_end(client) == (bytes(ANSWER_BYTES), "fin")
    with connect(served, "answer") as client:
        client.sendall(UNREAD)
        assert select.select([client], [], [], EVENT_TIMEOUT)[0]
        assert receive_to_end(client)[0] == bytes(ANSWER_BYTES)
