"""Damage by a worker to a shared listener is detected, logged and repaired within a second."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import ask_unixpacket, connect_unix
from tests.support.harness import Superd, ask_udp, exchange, make_plugin, until
from tests.support.ports import free_port

# Executes the requested action on the listener of its process that is bound to the given address.
SABOTEUR = """
    import errno, os, socket
    from superd.plugin import Service, hookimpl

    ACCEPTING = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)

    def is_listener(sock):
        accepts = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return accepts or sock.type == socket.SOCK_DGRAM

    def place(sock):
        name = sock.getsockname()
        return str(name[1]) if isinstance(name, tuple) else name

    def shutdown(number, sock, how=socket.SHUT_RDWR):
        try:
            sock.shutdown(how)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # udp shuts down in spite of this error
                raise

    def stop_sending(number, sock):
        shutdown(number, sock, socket.SHUT_WR)

    def no_backlog(number, sock):
        sock.listen(0)

    def blocking(number, sock):
        sock.setblocking(True)

    def connect(number, sock):
        sock.connect(sock.getsockname())

    def close(number, sock):
        os.close(number)

    def replace(number, sock):
        with open(os.devnull) as null:
            os.dup2(null.fileno(), number)

    class Saboteur(Service):
        name = "saboteur"

        async def stream(self, conn):
            async for line in conn:
                action, where = line.decode().split()
                found = 0
                for number in range(3, 200):
                    try:
                        sock = socket.socket(fileno=os.dup(number))
                    except OSError:
                        continue
                    with sock:
                        if is_listener(sock) and place(sock) == where:
                            found += 1
                            globals()[action](number, sock)
                await conn.send(b"%d\\n" % found)

        def datagram(self, request):
            return request.data

    @hookimpl
    def superd_services():
        return [Saboteur]
"""

TCP, UDP, UNIX, GRAM, PACKET = "tcp", "udp", "unix", "unixgram", "unixpacket"
ALL_KINDS = (TCP, UDP, UNIX, GRAM, PACKET)

# `victim` shares a worker with the saboteur, `distant` does not.
TOML = """
    [daemon]
    workers = {workers}

    [service.saboteur]
    plugin = "saboteur"
    listen = "tcp://127.0.0.1:0"

    [service.victim]
    plugin = "echo"
    listen = [
        "tcp://127.0.0.1:{port}", "udp://127.0.0.1:0", "unix://{directory}/unix",
        "unixgram://{directory}/unixgram", "unixpacket://{directory}/unixpacket",
    ]

    [service.distant]
    plugin = "echo"
    listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]
    pool = "distant"
"""

REPAIRED = [
    # first: after a shutdown the worker polls again, and would repair this before the master
    *((kind, "blocking", "was made blocking; repaired") for kind in (TCP, UNIX, PACKET)),
    (TCP, "no_backlog", "had its backlog reduced; repaired"),
    (TCP, "shutdown", "was shut down; repaired"),
]
BOUND_AGAIN = [
    *((kind, "shutdown", "is bound again") for kind in (UDP, UNIX, GRAM, PACKET)),
    (UDP, "stop_sending", "is bound again"),
    *((kind, "connect", "is bound again") for kind in (UDP, GRAM)),
]
# only the descriptor of that worker changes, so only that worker notices
WORKER_ENDS = [
    (kind, action, "the worker ends") for kind in ALL_KINDS for action in ("close", "replace")
]


CASES = [*REPAIRED, *BOUND_AGAIN, *WORKER_ENDS]
WITH_SEVERAL_WORKERS = [
    (kind, action, message)
    for kind, action, message in CASES
    if kind in (TCP, UDP) and action in ("shutdown", "blocking", "close")
]


@contextlib.contextmanager
def serving(workers: int) -> Iterator[Superd]:
    """Start a superd with `workers` workers in each pool."""
    with tempfile.TemporaryDirectory(prefix="superd-test-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # the saboteur runs as another user
        toml = TOML
        values = {"directory": directory, "workers": workers, "port": free_port()}
        for key, value in values.items():
            toml = toml.replace(f"{{{key}}}", str(value))
        instance = Superd(
            directory, toml, env=make_plugin(directory / "plugins", "saboteur", SABOTEUR)
        )
        try:
            yield instance.start()
        finally:
            instance.stop()
            print(instance.log())


@pytest.fixture(scope="module")
def superd() -> Iterator[Superd]:
    with serving(workers=1) as instance:
        yield instance


@pytest.fixture(scope="module")
def superd_with_three_workers() -> Iterator[Superd]:
    with serving(workers=3) as instance:
        yield instance


def where(superd: Superd, kind: str) -> str:
    """Return the port or path of the victim's listener."""
    if kind in (TCP, UDP):
        return str(superd.address("victim", kind)[1])
    return str(superd.directory / kind)


def sabotage(superd: Superd, action: str, kind: str) -> None:
    with superd.connect("saboteur") as client:
        client.sendall(f"{action} {where(superd, kind)}\n".encode())
        assert client.recv(10) == b"1\n", "the saboteur did not find the listener"


def is_served(superd: Superd, kind: str) -> bool:
    """Return whether the victim answers a client."""
    path = superd.directory / kind
    try:
        if kind == TCP:
            return exchange(superd.connect("victim"), b"hello") == b"hello"
        if kind == UDP:
            return ask_udp(superd.address("victim", UDP), b"hello", timeout=0.2) == b"hello"
        if kind == UNIX:
            return exchange(connect_unix(path), b"hello") == b"hello"
        if kind == GRAM:
            with connect_unix(path, socket.SOCK_DGRAM) as client:
                client.settimeout(0.2)
                client.send(b"hello")
                return client.recv(100) == b"hello"
        return ask_unixpacket(path, b"hello") == [b"hello"]
    except OSError:
        return False


@contextlib.contextmanager
def undisturbed(superd: Superd) -> Iterator[None]:
    """Check that a session and new clients of another pool are served as before."""
    with superd.connect("distant") as session:
        session.sendall(b"before")
        assert session.recv(100) == b"before"
        yield
        session.sendall(b"after")
        assert session.recv(100) == b"after"
    assert exchange(superd.connect("distant"), b"hello") == b"hello"
    assert ask_udp(superd.address("distant", "udp"), b"hello") == b"hello"


@pytest.mark.parametrize(("kind", "action", "message"), CASES)
def test_damage_to_a_listener_is_detected_logged_and_repaired(
    superd: Superd, kind: str, action: str, message: str
) -> None:
    assert_repaired(superd, kind, action, message)


@pytest.mark.parametrize(("kind", "action", "message"), WITH_SEVERAL_WORKERS)
def test_damage_by_one_of_several_workers_is_repaired_for_all_workers(
    superd_with_three_workers: Superd, kind: str, action: str, message: str
) -> None:
    assert_repaired(superd_with_three_workers, kind, action, message)


def assert_repaired(superd: Superd, kind: str, action: str, message: str) -> None:
    until(lambda: is_served(superd, kind), f"{kind} to be served before the damage")
    seen = len(superd.log())
    with undisturbed(superd):
        sabotage(superd, action, kind)
        started = time.monotonic()
        # some damage is detected only when a client connects, which is soon enough
        until(
            lambda: is_served(superd, kind) and message in superd.log()[seen:],
            f"the repair of {kind}",
        )
        took = time.monotonic() - started
    assert took < 5, "the repair took too long; it takes a second on an idle machine"
    for other in ALL_KINDS:
        until(lambda: is_served(superd, other), f"{other} to be served")  # noqa: B023
    assert "Traceback" not in superd.log()[seen:]


def test_a_port_that_the_kernel_chose_is_bound_again(superd: Superd) -> None:
    """The saboteur damages its own listener, whose configured port is 0."""
    host, port = superd.address("saboteur")
    seen = len(superd.log())
    with superd.connect("saboteur") as client:
        client.sendall(f"shutdown {port}\n".encode())
        assert client.recv(10) == b"1\n"

    def is_listening() -> bool:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except ConnectionRefusedError:
            return False
        return True

    until(is_listening, "the listener")
    assert "is bound again" in superd.log()[seen:]


def test_a_closed_listener_is_detected_before_a_client_connects(superd: Superd) -> None:
    seen = len(superd.log())
    sabotage(superd, "close", UNIX)
    until(lambda: "the worker ends" in superd.log()[seen:], "the end of the worker")
    until(lambda: is_served(superd, UNIX), "unix to be served")


def test_workers_do_not_spin_once_a_shut_down_socket_is_bound_again(superd: Superd) -> None:
    sabotage(superd, "shutdown", UDP)
    until(lambda: is_served(superd, UDP), "udp to be served")
    before = processor_time(superd)
    select.select([], [], [], 1.0)
    assert processor_time(superd) - before < 0.5


def processor_time(superd: Superd) -> float:
    """Return the seconds of processor time of all workers."""
    ticks = 0
    for worker in superd.workers():
        fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
