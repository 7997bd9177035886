"""tcpmux: services by name, through one port (RFC 1078)."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from tests.conftest import Start
from tests.support.clients import receive_to_end
from tests.support.harness import Record, Superd, receive_all, until
from tests.support.proc import descriptors

TOML = """
[daemon]
record-log = "{directory}/records"
record-format = "json"

[defaults]
user = "nobody"

[service.mux]
plugin = "tcpmux"
listen = ["tcp://127.0.0.1:0", "tcp://[::1]:0"]
options = { timeout = "400ms" }

[service.echo]
plugin = "echo"
listen = ["tcp://127.0.0.1:0", "tcpmux://Echo"]

[service.daytime]
plugin = "daytime"
listen = "tcpmux://daytime"

[service.cat]
plugin = "exec"
listen = "tcpmux://cat"
user = "daemon"
options = { command = ["sh", "-c", "echo $TCPREMOTEIP $TCPLOCALPORT; id -un; exec cat"] }

[service.own]
plugin = "exec"
listen = "tcpmux://own?greeting=service"
options = { command = ["sh", "-c", "printf '+mine\\\\r\\\\n'; exec cat"] }

[service.closed]
plugin = "echo"
listen = "tcpmux://closed"
allow = []

[service.one]
plugin = "echo"
listen = "tcpmux://one"
max-per-source = 1

[service.forked]
plugin = "echo"
listen = "tcpmux://forked"
model = "fork"
"""

NAMES = ["echo", "daytime", "cat", "own", "closed", "one", "forked"]


def ask(superd: Superd, *parts: bytes, number: int = 0) -> bytes:
    """Send, half-close, and read to the end."""
    with socket.create_connection(superd.addresses("mux")[number], timeout=10) as client:
        for part in parts:
            client.sendall(part)
        client.shutdown(socket.SHUT_WR)
        return receive_all(client)


def test_help_lists_the_names(served: Superd) -> None:
    assert ask(served, b"HeLp\r\n").decode().split("\r\n") == [*sorted(NAMES), ""]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", [b"echo", b"ECHO", b"forked"])
def test_a_service_is_reached_by_its_name(served: Superd, name: bytes, number: int) -> None:
    assert ask(served, name + b"\r\nhello", number=number) == b"+Go\r\nhello"


def test_not_a_byte_is_lost_or_added(served: Superd) -> None:
    data = os.urandom(100_000)
    assert ask(served, b"ec", b"ho\r", b"\n", data) == b"+Go\r\n" + data
    assert ask(served, b"echo\n\r\n\0") == b"+Go\r\n\r\n\0"


def test_go_precedes_an_immediate_answer(served: Superd) -> None:
    assert ask(served, b"daytime\r\n").startswith(b"+Go\r\n" + time.strftime("%a %b").encode())


@pytest.mark.root
def test_a_program_has_the_clients_address_and_its_own_user(served: Superd) -> None:
    answer = ask(served, b"cat\r\nmew").decode()
    port = served.address("mux")[1]
    assert answer == f"+Go\r\n127.0.0.1 {port}\ndaemon\nmew"


def test_a_program_can_send_its_own_greeting(served: Superd) -> None:
    assert ask(served, b"own\r\nmew") == b"+mine\r\nmew"


def test_the_service_applies_its_own_rules_and_limits(served: Superd) -> None:
    assert ask(served, b"closed\r\n") == b"-The service refuses you\r\n"
    address = served.address("mux")
    with socket.create_connection(address, timeout=10) as first:
        first.sendall(b"one\r\n")
        assert first.recv(100) == b"+Go\r\n"
        assert ask(served, b"one\r\n") == b"-The service refuses you\r\n"
    served.wait_until_idle("one")
    assert ask(served, b"one\r\nx") == b"+Go\r\nx"
    counts = served.counts("closed")
    assert counts["accepted"] == counts["refused-access"] == 1


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"nosuch\r\n", b"-There is no such service\r\n"),
        (b"\r\n", b"-There is no such service\r\n"),
        (b"\xff\xfe\x1b[2J\r\n", b"-There is no such service\r\n"),
        (b"ech", b"-There is no such service\r\n"),
        (b"x" * 5000, b"-The name is too long\r\n"),
    ],
)
def test_unknown_and_invalid_names_are_refused(served: Superd, sent: bytes, answer: bytes) -> None:
    assert ask(served, sent) == answer


def test_a_silent_client_is_closed_after_the_timeout(served: Superd) -> None:
    with served.connect("mux") as client:
        assert receive_to_end(client) == (b"", "fin")


def test_both_services_record_the_connection(served: Superd) -> None:
    with served.connect("mux") as client:
        client.sendall(b"echo\r\n")
        assert client.recv(100) == b"+Go\r\n"
        peer = "{}:{}".format(*client.getsockname())

    def events() -> list[Record] | None:
        found = [record for record in served.records(event="closed") if record["peer"] == peer]
        return found if len(found) == 2 else None

    ends = {e["service"]: e for e in until(events, "both records")}
    assert ends["mux"]["outcome"] == "passed to echo"
    assert ends["echo"]["local"] == "tcp://{}:{}".format(*served.address("mux"))


@pytest.mark.root  # counts descriptors of workers
def test_new_workers_serve_after_the_end_of_all_workers(served: Superd) -> None:
    before = set(served.workers())
    for worker in before:
        os.kill(worker, signal.SIGKILL)
    until(lambda: len(set(served.workers()) - before) == len(before), "new workers")
    assert ask(served, b"echo\r\nhello") == b"+Go\r\nhello"
    counts = [len(descriptors(worker)) for worker in served.workers()]
    for _ in range(20):
        assert ask(served, b"cat\r\n").startswith(b"+Go")
        assert ask(served, b"nosuch\r\n")
    until(
        lambda: [len(descriptors(worker)) for worker in served.workers()] == counts,
        "no descriptor more than before",
    )


ONE_EACH = """
[daemon]
max-per-source = 1
[service.mux]
plugin = "tcpmux"
listen = "tcp://127.0.0.1:0"
[service.echo]
plugin = "echo"
listen = "tcpmux://echo"
pool = "another"
"""


def test_a_client_that_is_passed_on_counts_once(start_superd: Start) -> None:
    superd = start_superd(ONE_EACH)
    for _ in range(30):
        assert ask(superd, b"echo\r\nhello") == b"+Go\r\nhello"
        superd.wait_until_idle("echo")
        superd.wait_until_idle("mux")


RELOADED = """
[service.mux]
plugin = "tcpmux"
listen = "tcp://127.0.0.1:0"
[service.echo]
plugin = "echo"
listen = "tcpmux://{name}"
"""


def test_a_reload_changes_the_names(start_superd: Start) -> None:
    superd = start_superd(RELOADED.replace("{name}", "echo"))
    with superd.connect("mux") as client:
        client.sendall(b"echo\r\n")
        assert client.recv(100) == b"+Go\r\n"
        superd.toml = RELOADED.replace("{name}", "other")
        superd.write()
        assert superd.run("reload").returncode == 0
        assert ask(superd, b"other\r\nx") == b"+Go\r\nx"
        assert ask(superd, b"echo\r\n") == b"-There is no such service\r\n"
        client.sendall(b"still here")
        assert client.recv(100) == b"still here"


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('listen = "tcpmux://x"', 'needs a service with plugin = "tcpmux"; add one'),
        ('listen = "tcpmux://a b"', "expected a name of letters, digits"),
        ('listen = "tcpmux://help"', "expected a name of letters, digits"),
        ('listen = "tcpmux://x?greeting=no"', r"expected greeting=service after the \?, not"),
        ('listen = ["tcpmux://x", "tcpmux://X"]', "is listened on by service.x already"),
    ],
)
def test_a_mistake_is_reported(start_superd: Start, toml: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        start_superd(f'[service.x]\nplugin = "echo"\n{toml}\n')
