"""A plugin's failure ends only its own connection; a crash of its process affects only its pool."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import connect_and_receive, connect_many, receive_to_end, reset
from tests.support.harness import Superd, exchange, make_plugin, until
from tests.support.proc import children, zombies

ANIMALS = {
    "system_exit": "raise SystemExit(3)",
    "sys_exit": "sys.exit('enough')",
    "keyboard_interrupt": "raise KeyboardInterrupt",
    "generator_exit": "raise GeneratorExit",
    "cancelled": "raise asyncio.CancelledError",
    "memory": "bytes(1 << 62)",
    "recursion": "await self.talk(conn)",
    "value_error": "raise ValueError('no such value: \\x1b[2J\\n')",
    "group": "raise BaseExceptionGroup('two', [SystemExit(1), ValueError('x')])",
    "refused": "await asyncio.open_connection('127.0.0.1', 1)",
    "stop_loop": "loop.stop()",
    "close_loop": "loop.close()",
    "run_loop": "loop.run_forever()",
    "odd_level": "conn.log('fatal', 'x')",
    "send_text": "await conn.send('text')",
    "send_after_close": "conn.close(); await conn.send(b'x')",
    "send_after_eof": "conn.send_eof(); await conn.send(b'x')",
}

# these ended the stream before they failed
ENDINGS = {"send_after_close": "fin", "send_after_eof": "fin"}

# a task or a callback raises, so no connection fails
STRAYS = {
    "exit_in_task": "self.kept = loop.create_task(leave())",
    "exit_in_callback": "loop.call_soon(sys.exit)",
    "interrupt_in_timer": "loop.call_later(0, interrupt)",
    "stop_in_callback": "loop.call_soon(loop.stop)",
    "stop_from_a_thread": "await asyncio.to_thread(loop.call_soon_threadsafe, loop.stop)",
}

# a forked process that returns must not serve clients
FORKED = {
    "fork": "os.fork()",
    "fork_to_fail": "os.fork() or os.execv('/no/such/program', ['x'])",
    "fork_to_wait": "os.fork() or await asyncio.sleep(3600)",
}

KILLERS = {
    "exit": "os._exit(7)",
    "segfault": "ctypes.string_at(0)",
    "abort": "os.abort()",
    "suicide": "os.kill(os.getpid(), 9)",
}

ZOO = """
    import asyncio, ctypes, os, sys
    from superd.plugin import Options, Service, hookimpl

    async def leave():
        raise SystemExit

    def interrupt():
        asyncio.get_running_loop()
        raise KeyboardInterrupt

    class Zoo(Service):
        name = "zoo"

        async def stream(self, conn):
            act = (await conn.readline()).decode().strip()
            await conn.send(b"watch: ")
            await getattr(self, act)(conn)

        async def hang(self, conn):
            await asyncio.sleep(3600)

        async def swallow(self, conn):
            while True:
                try:
                    await asyncio.sleep(3600)
                except BaseException:
                    pass

        async def leak(self, conn):
            os.open("/dev/null", os.O_RDONLY)
"""


def zoo() -> str:
    """Return the source of the plugin, with a method for each animal."""
    source = ZOO
    for name, code in (ANIMALS | STRAYS | FORKED | KILLERS).items():
        method = f"async def {name}(self, conn): loop = asyncio.get_running_loop(); {code}"
        source += f"\n        {method.replace('self.talk', 'self.' + name)}\n"
    return source + "\n    @hookimpl\n    def superd_services():\n        return [Zoo]\n"


# Each method that a plugin can have, raising an exception or returning a wrong value.
CAGE = """
    import asyncio
    from superd.plugin import Options, Service, hookimpl

    class CageOptions(Options):
        act: str

    class Cage(Service):
        name = "{name}"
        options_model = CageOptions

        {method}

    class Fails(asyncio.Protocol):
        def __init__(self, act):
            self.act = act

        def __getattribute__(self, name):
            if name == object.__getattribute__(self, "act"):
                raise SystemExit("in " + name)
            return object.__getattribute__(self, name)

        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            if data == b"flood":
                self.transport.write(bytes(64 << 20))

    @hookimpl
    def superd_services():
        return [Cage]
"""

METHODS = {
    "cage_respond": "def respond(self, request): return eval(self.options.act)",
    "cage_datagram": "def datagram(self, request): return eval(self.options.act)",
    "cage_protocol": "def protocol(self, conn): return eval(self.options.act)",
    "cage_takeover": "async def takeover(self, *_): return eval(self.options.act)",
}

PLUGINS = {"zoo": zoo()} | {
    name: CAGE.format(name=name, method=method) for name, method in METHODS.items()
}


@dataclass(frozen=True)
class Cage:
    """A plugin, the expression in its method, the client's data, and the expected log line."""

    plugin: str
    act: str
    says: str
    sends: bytes = b""


CAGES = {
    "respond_raises": Cage("cage_respond", "exit('now')", "SystemExit: now"),
    "respond_missing_file": Cage("cage_respond", "open('/no/file')", "No such file .*/no/file"),
    "respond_reset": Cage("cage_respond", "(_ for _ in ()).throw(ConnectionResetError)", "Conn"),
    "respond_none": Cage("cage_respond", "None", r"respond\(\) returned NoneType, not bytes"),
    "respond_text": Cage("cage_respond", "'text'", r"respond\(\) returned str, not bytes"),
    "protocol_raises": Cage("cage_protocol", "exit('now')", "SystemExit: now"),
    "protocol_none": Cage("cage_protocol", "None", r"protocol\(\) returned None"),
    "protocol_class": Cage("cage_protocol", "asyncio.Protocol", r"protocol\(\) returned <class"),
    "made_raises": Cage("cage_protocol", "Fails('connection_made')", "in connection_made"),
    "data_raises": Cage("cage_protocol", "Fails('data_received')", "in data_received", b"x"),
    "pause_raises": Cage("cage_protocol", "Fails('pause_writing')", "in pause_writing", b"flood"),
    "takeover_raises": Cage("cage_takeover", "exit('now')", "SystemExit: now"),
}

GOOD = ["neighbour", "distant", "beside_killers"]

TOML = """
[daemon]
loop = "{loop}"

[service.neighbour]
plugin = "echo"
listen = "tcp://127.0.0.1:0"

[service.zoo]
plugin = "zoo"
listen = "tcp://127.0.0.1:0"

[service.distant]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
pool = "distant"

[service.killers]
plugin = "zoo"
listen = "tcp://127.0.0.1:0"
pool = "killers"

[service.beside_killers]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
pool = "killers"

[service.eof_raises]
plugin = "cage_protocol"
listen = "tcp://127.0.0.1:0"
options = { act = "Fails('eof_received')" }

[service.lost_raises]
plugin = "cage_protocol"
listen = "tcp://127.0.0.1:0"
options = { act = "Fails('connection_lost')" }

[service.datagram_raises]
plugin = "cage_datagram"
listen = "udp://127.0.0.1:0"
options = { act = "{b'raise': exit, b'no': lambda: None}.get(request.data, lambda: b'y')()" }
""" + "".join(
    f"""
[service.{name}]
plugin = "{cage.plugin}"
listen = "tcp://127.0.0.1:0"
options = {{ act = "{cage.act}" }}
"""
    for name, cage in CAGES.items()
)


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.contextmanager
def undisturbed(served: Superd, *services: str) -> Iterator[None]:
    """Hold connections to other services, and check that they work before and afterwards."""
    with contextlib.ExitStack() as stack:
        others = [
            client
            for service in services
            for client in stack.enter_context(connect_many(served.address(service), 5))
        ]
        for client in others:
            client.sendall(b"before")
            assert client.recv(100) == b"before"
        yield
        for number, client in enumerate(others):
            client.sendall(b"after %d" % number)
            assert client.recv(100) == b"after %d" % number


def act(served: Superd, animal: str) -> tuple[bytes, str]:
    """Run a failing method in a connection; return the data and the end that the client sees."""
    return connect_and_receive(served.address("zoo"), f"{animal}\n".encode())


@pytest.mark.parametrize("animal", ANIMALS)
def test_an_exception_in_a_connection_ends_only_that_connection(
    served: Superd, animal: str
) -> None:
    workers = served.workers()
    errors = served.counts("zoo")["errors"]
    with undisturbed(served, "neighbour", "distant"):
        assert act(served, animal) in [(b"watch: ", ENDINGS.get(animal, "reset")), (b"", "reset")]
        found = served.wait_for_log(
            r"error: plugin zoo failed: .* service=zoo conn=[\w-]+ peer=127\.0\.0\.1:\d+\n"
            rf"(.*error: \|.*\n)+.* in {animal}\n(.*error: \|.*\n)+"
        )[0]
    assert "superd_zoo.py" in found  # the traceback shows the plugin
    assert served.counts("zoo")["errors"] == errors + 1
    assert served.workers() == workers


@pytest.mark.parametrize("stray", STRAYS)
def test_an_exception_in_a_task_or_a_callback_is_logged_and_ends_no_connection(
    served: Superd, stray: str
) -> None:
    workers = served.workers()
    start = len(served.log())
    with undisturbed(served, "neighbour", "distant"):
        assert act(served, stray) == (b"watch: ", "fin")
        report = r"error: .*(\n.*\| |more like this)"
        until(lambda: re.search(report, served.log()[start:]), "a traceback, or a count of them")
    assert served.workers() == workers


@pytest.mark.parametrize("forked", FORKED)
def test_a_process_that_a_handler_forks_ends_when_it_returns(served: Superd, forked: str) -> None:
    workers = served.workers()
    with undisturbed(served, "neighbour", "distant"):
        assert act(served, forked) == (b"watch: ", "fin")
        until(
            lambda: not any(set(children(w)) - set(zombies(w)) for w in workers),
            "the end of the process",
        )
    assert served.workers() == workers


@pytest.mark.parametrize("killer", KILLERS)
def test_a_crash_of_a_worker_affects_only_its_pool(served: Superd, killer: str) -> None:
    (worker,) = served.workers("killers")
    with (
        undisturbed(served, "neighbour", "distant"),
        served.connect("killers") as client,
        served.connect("beside_killers") as beside,
    ):
        client.sendall(killer.encode() + b"\n")
        began = time.monotonic()
        assert receive_to_end(client)[0] in (b"", b"watch: ")
        receive_to_end(beside)
        # a new client waits for the successor and is not refused
        assert exchange(served.connect("beside_killers"), b"again") == b"again"
        assert time.monotonic() - began < 10  # about 0.1 s on an idle machine
    assert served.workers("killers") != [worker]
    served.wait_for_log(rf"worker {worker} of pool killers .*its successor starts")


@pytest.mark.parametrize("name", CAGES)
def test_a_method_that_fails_is_reported_and_its_client_reset(served: Superd, name: str) -> None:
    cage = CAGES[name]
    with undisturbed(served, "neighbour", "distant"):
        assert connect_and_receive(served.address(name), cage.sends)[1] == "reset"
    served.wait_for_log(rf"plugin {cage.plugin} failed: .*{cage.says}.* service={name} conn=\S+ ")
    until(lambda: served.counts(name)["errors"] == 1, "the counted error")
    served.wait_until_idle(name)


def test_an_exception_in_eof_received_resets_and_one_in_connection_lost_is_only_logged(
    served: Superd,
) -> None:
    with served.connect("eof_raises") as client:
        client.shutdown(socket.SHUT_WR)
        assert receive_to_end(client) == (b"", "reset")
    assert exchange(served.connect("lost_raises"), b"") == b""
    for name in ("eof", "lost"):
        served.wait_for_log(rf"plugin cage_protocol failed: .* service={name}_raises conn=\S+ ")
        assert served.counts(f"{name}_raises")["errors"] == 1
        served.wait_until_idle(f"{name}_raises")


def test_an_exception_in_datagram_loses_only_that_datagram(served: Superd) -> None:
    address = served.address("datagram_raises", "udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(15)
        client.connect(address)
        for data in (b"raise", b"no", b"yes"):
            client.send(data)
        assert client.recv(100) == b"y"
    served.wait_for_log(r"plugin cage_datagram failed: SystemExit.* peer=127")
    assert served.counts("datagram_raises")["errors"] == 1


def test_hanging_connections_do_not_affect_other_connections(served: Superd) -> None:
    with (
        undisturbed(served, "neighbour", "distant"),
        connect_many(served.address("zoo"), 20) as clients,
    ):
        for client in clients:
            client.sendall(b"hang\n")
            assert client.recv(100) == b"watch: "
        assert act(served, "sys_exit")[1] == "reset"


def test_a_reset_by_a_client_is_not_an_error_of_the_plugin(served: Superd) -> None:
    start, errors, ports = len(served.log()), served.counts("zoo")["errors"], []
    for _ in range(50):
        for service, data in (("zoo", b"half a li"), ("neighbour", bytes(100_000))):
            client = served.connect(service)
            ports.append(client.getsockname()[1])
            client.sendall(data)
            reset(client)
    assert exchange(served.connect("neighbour"), b"still there") == b"still there"
    served.wait_until_idle("neighbour")
    # the log may still get an entry about a client of an earlier test
    assert [port for port in ports if f"peer=127.0.0.1:{port}\n" in served.log()[start:]] == []
    assert served.counts("zoo")["errors"] == errors


# A flood of failures


def flood(start_superd: Start, directory: Path, sessions: int) -> None:
    served = start_superd(
        """
        [service.zoo]
        plugin = "zoo"
        listen = "tcp://127.0.0.1:0"
        """,
        env=make_plugin(directory / "plugins", "zoo", zoo()),
    )
    for _ in range(sessions // 50):
        with connect_many(served.address("zoo"), 50) as clients:
            for client in clients:
                client.sendall(b"value_error\n")
            assert {receive_to_end(client) for client in clients} <= {
                (b"watch: ", "reset"),
                (b"", "reset"),
            }
    assert served.counts("zoo")["errors"] == sessions

    def reported() -> int:
        log = served.log()
        suppressed = sum(map(int, re.findall(r"\((\d+) more like this\)", log)))
        return log.count("plugin zoo failed") - log.count("more like this") + suppressed

    until(lambda: reported() == sessions, "the report of all failures, at least as a number")
    lines = served.log().count("\n")
    print(f"{sessions} failures in {lines} lines")
    assert lines <= 20 + 2  # two lines are from the start


def test_two_thousand_failures_make_only_a_few_log_lines(
    start_superd: Start, tmp_path: Path
) -> None:
    flood(start_superd, tmp_path, 2000)


@pytest.mark.soak
def test_ten_thousand_failures_make_only_a_few_log_lines(
    start_superd: Start, tmp_path: Path
) -> None:
    flood(start_superd, tmp_path, 10_000)


# Descriptors that are opened and never closed


def leak(start_superd: Start, directory: Path, sessions: int) -> None:
    served = start_superd(
        """
        [service.zoo]
        plugin = "zoo"
        listen = "tcp://127.0.0.1:0"
        pool = "leaking"
        rlimits = { nofile = 128 }

        [service.echo]
        plugin = "echo"
        listen = "tcp://127.0.0.1:0"
        """,
        env=make_plugin(directory / "plugins", "zoo", zoo()),
    )
    with undisturbed(served, "echo"):
        endings = [
            connect_and_receive(served.address("zoo"), b"leak\n")[1] for _ in range(sessions)
        ]
    replaced = len(re.findall(r"plugins have leaked \d+ descriptors", served.log()))
    print(
        f"{sessions} sessions, {replaced} workers replaced, {endings.count('reset')} sessions lost"
    )
    assert replaced >= sessions // 128
    # a client that is accepted with the last descriptor is lost: the plugin cannot open its file
    assert endings.count("reset") <= replaced + 1


def test_a_worker_with_leaked_descriptors_is_replaced_and_no_client_is_refused(
    start_superd: Start, tmp_path: Path
) -> None:
    leak(start_superd, tmp_path, 300)


@pytest.mark.soak
def test_workers_are_replaced_over_ten_thousand_leaking_sessions(
    start_superd: Start, tmp_path: Path
) -> None:
    leak(start_superd, tmp_path, 10_000)


# The end of a drain


def test_a_handler_that_ignores_its_cancellation_is_logged_once(
    start_superd: Start, tmp_path: Path
) -> None:
    served = start_superd(
        """
        [service.zoo]
        plugin = "zoo"
        listen = "tcp://127.0.0.1:0"
        session-timeout = "100ms"
        """,
        env=make_plugin(tmp_path / "plugins", "zoo", zoo()),
    )
    warning = (
        r"warning: its handler keeps running after its time-out, and keeps its slot service=zoo"
    )
    for number in (1, 2):
        assert act(served, "swallow") == (b"watch: ", "fin")
        until(lambda so_far=number: len(re.findall(warning, served.log())) == so_far, "a line")  # type: ignore[misc]
    assert re.search(r"warning: \| .*superd_zoo.py.* in swallow\n", served.log())
    assert served.counts("zoo")["active"] == 2


def test_a_handler_that_ignores_its_cancellation_does_not_delay_the_stop(
    start_superd: Start, tmp_path: Path
) -> None:
    served = start_superd(
        """
        [daemon]
        drain-timeout = "1s"

        [service.zoo]
        plugin = "zoo"
        listen = "tcp://127.0.0.1:0"
        """,
        env=make_plugin(tmp_path / "plugins", "zoo", zoo()),
    )
    with served.connect("zoo") as client:
        client.sendall(b"swallow\n")
        assert client.recv(100) == b"watch: "
        served.signal(signal.SIGTERM)
        assert receive_to_end(client)[0] == b""
        assert served.wait() == 0
    assert "1 connections cut" in served.log()
