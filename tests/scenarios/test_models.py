"""Blocking handlers: in threads, in a process for each connection, and in preforked processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import (
    ask_unixpacket,
    connect_many,
    connect_unix,
    exchange_digests,
    receive_to_end,
)
from tests.support.harness import (
    EVENT_TIMEOUT,
    Record,
    Superd,
    exchange,
    is_alive,
    make_plugin,
    receive_all,
    until,
)
from tests.support.proc import children, descriptors, threads, zombies

ZOO = """
    import asyncio, ctypes, os, socket, sys, threading, time
    from superd.plugin import BlockingConnection, Service, Unavailable, hookimpl

    class Odd(Exception):
        def __str__(self): raise ValueError

    class OddlyUnavailable(Unavailable):
        def __str__(self): raise ValueError

    class Zoo(Service):
        name = "zoo"

        def prepare(self):
            self.file = open("/proc/self/stat")

        def stream(self, conn: BlockingConnection):
            for line in conn:
                word = line.decode().strip()
                conn.send(str(getattr(self, word)(conn)).encode() + b"\\n")
                if word in ("last", "noted"):
                    return

        def last(self, conn): return "bye"
        def pid(self, conn): return os.getpid()
        def thread(self, conn): return threading.current_thread().name
        def ends(self, conn): return f"{conn.service} {conn.local} {conn.peer} {conn.id}"
        def file_is_open(self, conn): return os.fstat(self.file.fileno()).st_nlink > 0
        def raw(self, conn): conn.socket.sendall(b"raw "); return "bytes"
        def loop(self, conn): return asyncio.run(asyncio.sleep(0, "ran"))
        def noted(self, conn):
            conn.note("it was noted")
            conn.log("warning", "it was logged")
            return 1
        def group(self, conn): return os.getpgid(0) == os.getpid()

        def leak(self, conn):
            self.leaked = []
            while True: self.leaked.append(os.dup(0))

        def odd_level(self, conn): conn.log("fatal", "x")
        def read_nothing(self, conn): return conn.readline(0)
        def value_error(self, conn): raise ValueError("no such value")
        def system_exit(self, conn): sys.exit(3)
        def pause(self, conn): raise Unavailable("later", 1.0)
        def long_note(self, conn): conn.note("x" * 300_000); return "noted"
        def odd_error(self, conn): raise OSError("peer said", "no")
        def odd_text(self, conn): raise Odd
        def odd_excuse(self, conn): raise OddlyUnavailable("x", 0.0)
        def detach(self, conn):
            conn.send(b"%d\\n" % os.getpid())
            kept = socket.socket(fileno=conn.socket.detach())
            while True: time.sleep(60)
        def unavailable(self, conn): raise Unavailable("not today", 0.0)
        def abort(self, conn): conn.abort(); conn.read()
        def shut(self, conn): conn.close(); return "too late"

        def exit(self, conn): os._exit(7)
        def segfault(self, conn): ctypes.string_at(0)
        def suicide(self, conn): os.kill(os.getpid(), 9)
        def hang(self, conn):
            conn.send(b"%d\\n" % os.getpid())
            while True: time.sleep(60)
        def spin(self, conn):
            while True: conn.id
        def fork_and_hang(self, conn):
            child = os.fork()
            if child: conn.send(b"%d\\n" % child)
            while True: time.sleep(60)
        def return_twice(self, conn): os.fork(); return "here"
        def forked_to_fail(self, conn):
            if os.fork() == 0: os.execv("/no/such/program", ["x"])
            return "here"

    @hookimpl
    def superd_services(): return [Zoo]
"""
PLUGINS = {"zoo": ZOO}

RAISED = {
    "value_error": "ValueError: no such",
    "system_exit": "SystemExit",
    "odd_level": r'ValueError: expected a level \(debug, info, warning, error\), found "fatal"',
}

TOML = """
[daemon]
record-log = "{directory}/records"
record-format = "json"

[defaults]
plugin = "zoo"
listen = ["tcp://127.0.0.1:0"]

[service.thread]
model = "thread"

[service.fork]
model = "fork"

[service.prefork]
model = "prefork"

[service.by-default]

[service.hasty-thread]
model = "thread"
session-timeout = "300ms"
threads = 4

[service.hasty-fork]
model = "fork"
session-timeout = "300ms"

[service.hasty-prefork]
model = "prefork"
session-timeout = "300ms"
processes = 1

[service.idle-thread]
model = "thread"
idle-timeout = "300ms"

[service.idle-fork]
listen = ["unix://{directory}/idle-fork"]
model = "fork"
first-byte-timeout = "300ms"

[service.idle-prefork]
model = "prefork"
idle-timeout = "300ms"

[service.few-thread]
model = "thread"
threads = 1

[service.few-prefork]
model = "prefork"
processes = 1
max-requests = 2

[service.many]
model = "prefork"
processes = 3
max-requests = 0

[service.many-thread]
plugin = "echo"
model = "thread"

[service.many-fork]
plugin = "echo"
model = "fork"

[service.many-prefork]
plugin = "echo"
model = "prefork"
processes = 60

[service.few-descriptors]
model = "prefork"
processes = 1
rlimits.nofile = 100

[service.strict]
model = "fork"
max-per-source = 1

[service.echo-thread]
plugin = "echo"
listen = ["tcp://127.0.0.1:0", "unix://{directory}/thread", "unixpacket://{directory}/thread.p"]
model = "thread"

[service.echo-fork]
plugin = "echo"
listen = ["tcp://127.0.0.1:0", "unix://{directory}/fork", "unixpacket://{directory}/fork.p"]
model = "fork"

[service.echo-prefork]
plugin = "echo"
listen = ["tcp://127.0.0.1:0", "unix://{directory}/prefork", "unixpacket://{directory}/prefork.p"]
model = "prefork"
"""

MODELS = ("thread", "fork", "prefork")
FORKING = ("fork", "prefork")
CRASHES = {
    "exit": "ended with code 7",
    "segfault": "was ended by SIGSEGV",
    "suicide": "was ended by SIGKILL",
}


def ask(superd: Superd, service: str, *words: str) -> list[str]:
    """Send words, one on each line, and return the lines of the answer."""
    with superd.connect(service) as client:
        client.sendall("".join(f"{word}\n" for word in words).encode())
        client.shutdown(socket.SHUT_WR)
        return receive_all(client).decode().splitlines()


def first_line(client: socket.socket, word: str) -> str:
    """Send a word and return the first line of the answer."""
    client.sendall(f"{word}\n".encode())
    with client.makefile() as lines:
        return lines.readline().strip()


def has_ended(pid: int) -> bool:
    return not is_alive(pid)


def title(pid: int | str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0")


def closed_record(superd: Superd, service: str, **fields: object) -> Record:
    """Wait for the record of a closed connection that has these fields."""

    def found() -> Record | None:
        ends = superd.records(service, "closed")
        return next((e for e in reversed(ends) if fields.items() <= e.items()), None)

    return until(found, f"a record of {service} with {fields}")


@pytest.mark.parametrize("model", MODELS)
def test_a_blocking_echo_serves_every_stream_transport(served: Superd, model: str) -> None:
    with served.connect(f"echo-{model}") as client:
        sent, received = exchange_digests(client, os.urandom(300_000), 1)
    assert sent == received
    with connect_unix(served.directory / model) as client:
        client.sendall(b"over unix")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"over unix"
    packets = [b"one", b"two" * 1000]
    assert ask_unixpacket(served.directory / f"{model}.p", *packets) == packets


@pytest.mark.parametrize("model", MODELS)
def test_many_simultaneous_connections_are_all_served(served: Superd, model: str) -> None:
    service = f"many-{model}"
    address = served.address(service)
    with connect_many(address, 60) as clients:
        for client in clients:
            client.sendall(b"hello")
        assert {client.recv(5) for client in clients} == {b"hello"}
    served.wait_until_idle(service)


@pytest.mark.parametrize("model", MODELS)
def test_a_handler_knows_both_addresses_and_can_use_files_that_prepare_opened(
    served: Superd, model: str
) -> None:
    with served.connect(model) as client:
        ends = first_line(client, "ends").split()
        host, port = client.getsockname()
    assert ends[0] == model
    assert ends[1] == "tcp://{}:{}".format(*served.address(model))
    assert ends[2] == f"tcp://{host}:{port}"
    assert ask(served, model, "file_is_open", "raw", "loop") == ["True", "raw bytes", "ran"]
    assert closed_record(served, model, conn=ends[3])["peer"] == f"{host}:{port}"


def test_the_default_model_of_a_blocking_plugin_is_thread(served: Superd) -> None:
    (name, pid) = ask(served, "by-default", "thread", "pid")
    assert name == "superd: by-default"
    assert int(pid) in served.workers()


def test_fork_serves_each_connection_in_its_own_process(served: Superd) -> None:
    (worker,) = [pid for pid in served.workers() if title(pid).endswith("-fork")]
    with served.connect("fork") as one, served.connect("fork") as two:
        pids = {first_line(client, "pid") for client in (one, two)}
        assert pids <= set(map(str, children(worker)))
        peer = "{}:{}".format(*one.getsockname())
        assert f"superd: fork {peer}" in map(title, pids)
    assert len(pids) == 2
    until(lambda: not pids & set(map(str, children(worker))), "the end of both processes")
    assert ask(served, "fork", "group") == ["True"]


def test_preforked_processes_show_in_their_title_whether_they_are_idle(served: Superd) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(served.connect("many")) for _ in range(3)]
        pids = {first_line(client, "pid") for client in clients}
        assert len(pids) == 3
        titles = sorted(map(title, pids))
        ends = sorted("superd: many {}:{}".format(*c.getsockname()) for c in clients)
        assert titles == ends
    until(lambda: set(map(title, pids)) == {"superd: many idle"}, "all processes to be idle")
    assert ask(served, "many", "pid")[0] in pids


def test_a_process_is_replaced_after_max_requests(served: Superd) -> None:
    pids = [ask(served, "few-prefork", "pid")[0] for _ in range(6)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] in ([2, 2, 2], [1, 2, 2, 1])
    until(lambda: not is_alive(int(pids[0])), "the end of the first process")


def test_a_process_without_free_descriptors_is_replaced(served: Superd) -> None:
    for _ in range(5):
        with served.connect("few-descriptors") as client:
            client.sendall(b"leak\n")
            assert receive_to_end(client) == (b"", "reset")
        assert ask(served, "few-descriptors", "last") == ["bye"]
    served.wait_for_log("plugin zoo failed: Too many open files service=few-descriptors")


@pytest.mark.parametrize("service", ["few-thread", "few-prefork"])
def test_a_client_waits_for_a_free_thread_or_process(served: Superd, service: str) -> None:
    with served.connect(service) as first, served.connect(service) as second:
        assert first_line(first, "last") == "bye"
        second.sendall(b"last\n")
        assert receive_all(second) == b"bye\n"
        assert receive_all(first) == b""
    with served.connect(service) as first, served.connect(service) as second:
        assert first_line(first, "group") in ("True", "False")
        second.sendall(b"last\n")
        second.settimeout(0.2)
        with pytest.raises(TimeoutError):
            second.recv(1)
        first.close()
        second.settimeout(EVENT_TIMEOUT)
        assert receive_all(second) == b"bye\n"


@pytest.mark.parametrize("model", MODELS)
def test_an_exception_in_a_handler_ends_only_its_connection(served: Superd, model: str) -> None:
    before = served.counts(model)["errors"]
    with served.connect(model) as other:
        assert first_line(other, "group")
        for word, error in RAISED.items():
            with served.connect(model) as client:
                client.sendall(f"{word}\n".encode())
                assert receive_to_end(client) == (b"", "reset")
            served.wait_for_log(rf"plugin zoo failed: {error}.* service={model} conn=")
        assert first_line(other, "last") == "bye"
    assert closed_record(served, model, end="error")["in"]
    assert served.counts(model)["errors"] - before == len(RAISED)
    assert re.search(r"\| .*raise ValueError", served.log())


@pytest.mark.parametrize("model", MODELS)
def test_reading_a_line_of_no_bytes_is_an_error_of_the_handler(served: Superd, model: str) -> None:
    with served.connect(model) as client:
        client.sendall(b"read_nothing\n")
        assert receive_to_end(client) == (b"", "reset")
    error = "ValueError: expected a limit of at least 1 byte, found 0"
    served.wait_for_log(rf"zoo failed: {error}.* service={model} conn=")


@pytest.mark.parametrize("model", MODELS)
def test_odd_exceptions_and_long_notes_harm_no_other_connection(served: Superd, model: str) -> None:
    for word in ("odd_error", "odd_text", "odd_excuse") * 3:
        with served.connect(model) as client:
            client.sendall(f"{word}\n".encode())
            assert receive_to_end(client) == (b"", "reset")
        assert ask(served, model, "long_note", "last") == ["noted", "bye"]
    served.wait_until_idle(model)


@pytest.mark.parametrize("model", MODELS)
def test_session_timeout_closes_a_connection_whose_socket_was_detached(
    served: Superd, model: str
) -> None:
    with served.connect(f"hasty-{model}") as client:
        assert first_line(client, "detach")
        assert receive_to_end(client)[0] == b""


@pytest.mark.parametrize("model", FORKING)
@pytest.mark.parametrize("word", CRASHES)
def test_a_crashed_process_resets_only_its_own_client(
    served: Superd, model: str, word: str
) -> None:
    with served.connect(model) as other:
        assert first_line(other, "group") == "True"
        with served.connect(model) as client:
            client.sendall(f"{word}\n".encode())
            assert receive_to_end(client) == (b"", "reset")
        served.wait_for_log(rf"its process {CRASHES[word]} service={model} ")
        assert first_line(other, "last") == "bye"
    assert closed_record(served, model, end="error", outcome=CRASHES[word])
    assert ask(served, model, "last") == ["bye"]


@pytest.mark.parametrize("model", MODELS)
def test_session_timeout_ends_a_handler_that_hangs(served: Superd, model: str) -> None:
    service = f"hasty-{model}"
    for _ in range(3):
        with served.connect(service) as client:
            pid = first_line(client, "hang")
            assert receive_to_end(client)[0] == b""
        closed_record(served, service, end="session-timeout")
        served.wait_until_idle(service)
        if model in FORKING:
            until(partial(has_ended, int(pid)), "the end of its process")
        assert ask(served, service, "last") == ["bye"]


@pytest.mark.parametrize("model", FORKING)
def test_session_timeout_ends_the_processes_that_a_handler_forked(
    served: Superd, model: str
) -> None:
    with served.connect(f"hasty-{model}") as client:
        grandchild = int(first_line(client, "fork_and_hang"))
        assert is_alive(grandchild)
        assert receive_to_end(client)[0] == b""
    until(lambda: not is_alive(grandchild), "the end of the grandchild")


@pytest.mark.parametrize("model", MODELS)
def test_a_handler_that_forks_and_returns_twice_is_counted_once(served: Superd, model: str) -> None:
    before = served.workers()
    for _ in range(5):
        assert "here" in ask(served, model, "return_twice")
    assert ask(served, model, "last") == ["bye"]
    served.wait_until_idle(model)
    assert served.workers() == before


@pytest.mark.parametrize("model", MODELS)
def test_an_exception_in_a_process_that_a_handler_forked_is_logged(
    served: Superd, model: str
) -> None:
    assert ask(served, model, "forked_to_fail", "last") == ["here", "bye"]
    served.wait_for_log(rf"plugin zoo failed: No such file or directory service={model} conn=")
    served.wait_until_idle(model)


def test_a_process_that_a_thread_forked_does_not_keep_the_port_bound(
    start_superd: Start, tmp_path: Path
) -> None:
    toml = '[service.zoo]\nplugin = "zoo"\nlisten = "tcp://127.0.0.1:0"\n'
    served = start_superd(toml, env=make_plugin(tmp_path / "plugins", "zoo", ZOO))
    with served.connect("zoo") as client:
        child = int(first_line(client, "fork_and_hang"))
        (worker,) = served.workers()
        try:
            for pid in (served.pid, worker):  # a stop of superd would end the process as well
                os.kill(pid, signal.SIGKILL)
            served.wait()
            until(lambda: not is_alive(worker), "the end of the worker")
            with socket.create_server(served.address("zoo")):
                assert is_alive(child)
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("model", MODELS)
def test_a_silent_client_is_closed_after_its_timeout(served: Superd, model: str) -> None:
    service = f"idle-{model}"
    is_unix = model == "fork"
    path = served.directory / "idle-fork"
    with connect_unix(path) if is_unix else served.connect(service) as client:
        if not is_unix:
            assert first_line(client, "raw").startswith("raw bytes")
        assert receive_to_end(client) == (b"", "fin")
    assert closed_record(served, service)["end"] == (
        "first-byte-timeout" if is_unix else "idle-timeout"
    )


@pytest.mark.parametrize("model", MODELS)
def test_a_record_has_the_note_of_the_handler(served: Superd, model: str) -> None:
    assert exchange(served.connect(model), b"noted\n") == b"1\n"
    record = closed_record(served, model, outcome="it was noted")
    assert (record["in"], record["out"]) == (6, 2)
    served.wait_for_log(rf"warning: it was logged service={model} conn={record['conn']} ")
    with served.connect(model) as client:
        assert first_line(client, "group")
    assert closed_record(served, model, end="client")["out"]


@pytest.mark.parametrize("model", MODELS)
def test_a_handler_can_abort_close_and_raise_unavailable(served: Superd, model: str) -> None:
    endings = {}
    for word in ("abort", "shut", "unavailable"):
        with served.connect(model) as client:
            client.sendall(f"{word}\n".encode())
            endings[word] = receive_to_end(client)
    assert endings == {
        "abort": (b"", "reset"), "shut": (b"", "fin"), "unavailable": (b"", "fin"),
    }  # fmt: skip
    served.wait_for_log(rf"error: not today service={model} ")
    assert ask(served, model, "last") == ["bye"]


def test_max_per_source_counts_connections_in_processes(served: Superd) -> None:
    with served.connect("strict") as first:
        assert first_line(first, "group") == "True"
        with served.connect("strict") as second:
            assert receive_to_end(second)[0] == b""
        assert first_line(first, "last") == "bye"
    served.wait_until_idle("strict")
    assert ask(served, "strict", "last") == ["bye"]


@pytest.mark.root
@pytest.mark.parametrize("model", FORKING)
def test_a_process_is_confined_and_inherits_no_descriptor_of_other_connections(
    served: Superd, model: str
) -> None:
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(served.connect(model)) for _ in range(3)]
        assert all(first_line(other, "group") for other in others)
        pid = int(first_line(others[-1], "pid"))
        (status,) = threads(pid)
        assert set(status["Uid"].split()) == {"65534"}
        assert status["CapPrm"] == status["CapBnd"] == "0" * 16
        assert status["NoNewPrivs"] == "1"
        targets = [d.target for d in descriptors(pid) if d.number > 2]
        (worker,) = [worker for worker in served.workers() if pid in children(worker)]
    # its connection, its channel to the worker, the log channel, and the file that prepare opened
    assert sum(target.startswith("socket:") for target in targets) == 3
    files = {target for target in targets if not target.startswith("socket:")}
    assert files == {f"/proc/{worker}/stat"}


LIFE = """
[daemon]
drain-timeout = "{drain}"
[service.x]
plugin = "zoo"
listen = "tcp://127.0.0.1:0"
model = "{model}"
"""


def start(start_superd: Start, tmp_path: Path, model: str, drain: str = "30s") -> Superd:
    env = make_plugin(tmp_path / "plugins", "zoo", ZOO)
    return start_superd(LIFE.format(model=model, drain=drain), env=env)


@pytest.mark.parametrize("model", MODELS)
def test_blocking_connections_finish_after_term(
    start_superd: Start, tmp_path: Path, model: str
) -> None:
    superd = start(start_superd, tmp_path, model)
    with superd.connect("x") as client:
        pid = int(first_line(client, "pid"))
        superd.signal(signal.SIGTERM)
        superd.wait_for_log("stopping: connections may finish")
        assert first_line(client, "last") == "bye"
        assert receive_all(client) == b""
    assert superd.wait() == 0
    assert not is_alive(pid)


@pytest.mark.parametrize("model", MODELS)
def test_blocking_connections_are_cut_at_the_end_of_drain_timeout(
    start_superd: Start, tmp_path: Path, model: str
) -> None:
    superd = start(start_superd, tmp_path, model, drain="300ms")
    with superd.connect("x") as client:
        pid = int(first_line(client, "hang"))
        superd.signal(signal.SIGTERM)
        assert superd.wait() == 0
    assert "1 connections cut at the end of drain-timeout" in superd.log()
    assert not is_alive(pid)


@pytest.mark.parametrize("model", FORKING)
def test_connections_in_processes_outlive_their_killed_worker(
    start_superd: Start, tmp_path: Path, model: str
) -> None:
    superd = start(start_superd, tmp_path, model)
    (worker,) = superd.workers()
    with superd.connect("x") as client:
        pid = int(first_line(client, "pid"))
        idle = set(children(worker)) - {pid}
        os.kill(worker, signal.SIGKILL)
        until(lambda: superd.workers() not in ([], [worker]), "another worker")
        until(lambda: not any(map(is_alive, idle)), "the end of the idle processes")
        assert first_line(client, "last") == "bye"
        assert receive_all(client) == b""
    until(lambda: not is_alive(pid), "the end of the process")
    assert ask(superd, "x", "last") == ["bye"]


@pytest.mark.parametrize("model", FORKING)
def test_processes_of_a_killed_worker_end_after_drain_timeout(
    start_superd: Start, tmp_path: Path, model: str
) -> None:
    superd = start(start_superd, tmp_path, model, drain="1s")
    (worker,) = superd.workers()
    with superd.connect("x") as client:
        pid = int(first_line(client, "hang"))
        os.kill(worker, signal.SIGKILL)
        until(partial(has_ended, pid), "the end of the process")
        assert receive_to_end(client)[0] == b""


def test_a_pause_by_unavailable_delays_pending_clients(start_superd: Start, tmp_path: Path) -> None:
    superd = start(start_superd, tmp_path, 'prefork"\nprocesses = 1\ndevice = "')
    with superd.connect("x") as first, superd.connect("x") as second:
        assert first_line(first, "group") == "True"
        second.sendall(b"last\n")
        began = time.monotonic()
        first.sendall(b"pause\n")
        assert receive_to_end(first) == (b"", "fin")
        assert receive_all(second) == b"bye\n"
        assert time.monotonic() - began >= 0.9


def test_a_process_that_ended_is_replaced_for_the_next_client(
    start_superd: Start, tmp_path: Path
) -> None:
    superd = start(start_superd, tmp_path, 'prefork"\nprocesses = 1\nmax-requests = 1\ndevice = "')
    for _ in range(20):
        assert ask(superd, "x", "last") == ["bye"]


NAMED = """
[service.x]
plugin = "zoo"
listen = "tcp://127.0.0.1:0"
model = "{model}"
processes = 1
threads = 1
allow = ["localhost"]
"""


@pytest.mark.parametrize("model", ["thread", "prefork"])
def test_clients_admitted_by_name_wait_for_a_free_thread_or_process(
    start_superd: Start, tmp_path: Path, model: str
) -> None:
    env = make_plugin(tmp_path / "plugins", "zoo", ZOO)
    superd = start_superd(NAMED.replace("{model}", model), env=env)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(superd.connect("x")) for _ in range(6)]
        for client in clients:
            client.sendall(b"last\n")
        assert [receive_all(client) for client in clients] == [b"bye\n"] * 6


@pytest.mark.parametrize("model", FORKING)
@pytest.mark.parametrize("number", [30, pytest.param(1000, marks=pytest.mark.soak)])
def test_killed_processes_leave_no_zombie_and_no_descriptor_behind(
    start_superd: Start, tmp_path: Path, model: str, number: int
) -> None:
    superd = start(start_superd, tmp_path, model)
    (worker,) = superd.workers()
    before = len(descriptors(worker))
    for _ in range(number):
        with superd.connect("x") as client:
            os.kill(int(first_line(client, "pid")), signal.SIGKILL)
            assert receive_to_end(client) == (b"", "reset")
    superd.wait_until_idle("x")
    assert ask(superd, "x", "last") == ["bye"]
    superd.wait_until_idle("x")
    until(lambda: not zombies(worker), "no zombie")
    until(lambda: len(descriptors(worker)) == before, "as many descriptors as before")


def test_a_hanging_thread_is_abandoned_and_replaced(start_superd: Start, tmp_path: Path) -> None:
    superd = start(start_superd, tmp_path, 'thread"\nthreads = 2\nsession-timeout = "200ms')
    for _ in range(2):
        with superd.connect("x") as client:
            assert first_line(client, "hang")
            assert receive_to_end(client)[0] == b""
    superd.wait_for_log("its handler hangs; its thread is abandoned, 2 so far")
    assert ask(superd, "x", "last") == ["bye"]


@pytest.mark.parametrize(
    ("plugin", "lines", "message"),
    [
        (
            "daytime",
            'model = "fork"',
            'has no stream(conn) that blocks; expected "loop", found "fork"',
        ),
        (
            "zoo",
            'model = "loop"',
            'has only one that blocks; expected "thread" or "fork" or "prefork", found "loop"',
        ),
        ("echo", 'model = "fork"\nwait = true', "has no effect with wait = true"),
        ("echo", 'model = "forks"', 'found "forks" (did you mean "fork"?)'),
        ("echo", "processes = 0", "expected an integer of at least 1, found 0"),
    ],
)
def test_check_reports_a_model_that_the_plugin_does_not_have(
    tmp_path: Path, plugin: str, lines: str, message: str
) -> None:
    env = make_plugin(tmp_path / "plugins", "zoo", ZOO)
    text = f'[service.x]\nplugin = "{plugin}"\nlisten = "tcp://127.0.0.1:0"\n{lines}\n'
    superd = Superd(tmp_path, text, env=env)
    superd.write()
    done = superd.run("check", str(superd.file))
    assert done.returncode == 78
    assert message in done.stderr


def test_a_plugin_with_processes_must_not_start_a_thread_in_prepare(
    start_superd: Start, tmp_path: Path
) -> None:
    source = ZOO.replace(
        'self.file = open("/proc/self/stat")',
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    )
    env = make_plugin(tmp_path / "plugins", "zoo", source)
    with pytest.raises(AssertionError, match="a plugin started a thread in prepare"):
        start_superd(LIFE.format(model="fork", drain="1s"), env=env)
