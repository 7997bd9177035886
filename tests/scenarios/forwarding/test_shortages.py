"""Shortages of the system, and clients or workers that end: other sessions lose nothing."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.scenarios.forwarding.ends import (
    Pair,
    Stream,
    Target,
    descriptors_are_closed,
    digest_of,
    entry,
    stays_quiet,
)
from tests.support.clients import is_open, receive_to_end, reset
from tests.support.harness import EVENT_TIMEOUT, Superd, exchange, make_plugin, until
from tests.support.usage import processor_time

FEW_DESCRIPTORS = 64

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def target() -> Iterator[Target]:
    with contextlib.closing(Target()) as one:
        yield one


def exchanges(ends: Ends) -> bool:
    """Tell whether data passes in both directions."""
    client, server = ends
    client.sendall(b"a question")
    received = server.recv(100)
    server.sendall(b"an answer")
    return (received, client.recv(100)) == (b"a question", b"an answer")


def arrives(ends: Ends, streams: tuple[Stream, Stream]) -> bool:
    """End both sides, and tell whether all sent data has arrived."""
    for end in ends:
        end.shutdown(socket.SHUT_WR)
    return [digest_of(end) for end in reversed(ends)] == [
        (stream.count, stream.digest.hexdigest()) for stream in streams
    ]


# Clients that reset


def abort_transfer(pair: Pair, number: int) -> None:
    """Start a transfer, and abort it in a way that depends on the number."""
    with pair.open() as (client, server):
        for end in (client, server):
            Stream().push(end, (1, 1000, 1 << 18)[number % 3])
        if number % 4 == 1:
            client.recv(100)
        if number % 5 == 2:
            client.shutdown(socket.SHUT_WR)
        if number % 7 == 3:
            reset(server)
        reset(client)
        with contextlib.suppress(ConnectionResetError):
            while server.fileno() >= 0 and server.recv(1 << 17):
                pass


def abort_transfers(served: Superd, pair: Pair, number: int) -> None:
    workers = served.workers()
    abort_transfer(pair, 0)
    served.wait_until_idle("web")
    start = len(served.log())
    with descriptors_are_closed(served):
        for n in range(number):
            abort_transfer(pair, n)
        served.wait_until_idle("web", 5)
        with pair.open() as ends:
            assert exchanges(ends)
    assert served.workers() == workers
    assert served.counts("web")["errors"] == 0
    assert served.log()[start:] == ""


@pytest.mark.parametrize("loop", ["asyncio", pytest.param("uvloop", marks=pytest.mark.soak)])
@pytest.mark.parametrize("number", [1000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_clients_that_reset_a_transfer_leave_nothing_behind(
    start_superd: Start, target: Target, number: int, loop: str
) -> None:
    served = start_superd(f'[daemon]\nloop = "{loop}"\n' + entry("web", target))
    abort_transfers(served, Pair(served, "web", target), number)


UNCOLLECTED = """
    import gc

    from superd.plugin import Service, hookimpl

    class Uncollected(Service):
        name = "uncollected"

        def start(self):
            gc.disable()

        async def stream(self, conn):
            kinds = [type(it).__name__ for it in gc.get_objects()]
            await conn.send(str(sum(map(kinds.count, ("Side", "ForwardedConnection")))).encode())

    @hookimpl
    def superd_services():
        return [Uncollected]
"""


def test_a_closed_connection_leaves_nothing_to_the_garbage_collector(
    start_superd: Start, target: Target, tmp_path: Path
) -> None:
    toml = (
        entry("web", target)
        + """
    [service.uncollected]
    plugin = "uncollected"
    listen = "tcp://127.0.0.1:0"
    """
    )
    served = start_superd(toml, env=make_plugin(tmp_path / "plugins", "uncollected", UNCOLLECTED))
    pair = Pair(served, "web", target)
    with pair.open() as ends:
        assert exchanges(ends)
        # Three objects: the connection, and its two sides.
        assert exchange(served.connect("uncollected"), b"") == b"3"
        for number in range(3 * 4 * 5 * 7):
            abort_transfer(pair, number)
    served.wait_until_idle("web")
    assert exchange(served.connect("uncollected"), b"") == b"0"


# Too few descriptors


@pytest.mark.parametrize(
    "few", [FEW_DESCRIPTORS, FEW_DESCRIPTORS + 1]
)  # a session takes two: with one more, half of one is left
def test_without_descriptors_old_sessions_lose_nothing_and_new_ones_wait(
    start_superd: Start, target: Target, few: int
) -> None:
    """A client that superd accepts but cannot connect is reset; later ones wait in the backlog."""
    served = start_superd(entry("web", target, more=f"\nrlimits = {{ nofile = {few} }}"))
    pair = Pair(served, "web", target)
    (worker,) = served.workers()
    with contextlib.ExitStack() as stack:
        sessions: list[Ends] = []
        others: list[socket.socket] = []  # clients without a session
        while len(sessions) < few:
            with contextlib.suppress(ConnectionResetError):
                client = stack.enter_context(pair.connect())
                if select.select([target.sock], [], [], 0.3)[0]:
                    sessions.append((client, stack.enter_context(target.accept())))
                    continue
                others.append(client)
            break
        assert 10 < len(sessions) < few // 2
        messages = "cannot accept, clients wait|cannot connect to tcp://127.0.0.1:[0-9]+"
        served.wait_for_log(f"({messages}): Too many open files")
        for _ in range(10):
            with contextlib.suppress(ConnectionResetError):
                others.append(stack.enter_context(pair.connect()))
        before = processor_time(worker)
        streams = []
        for seed, ends in enumerate(sessions):
            assert exchanges(ends)
            pushed = Stream(seed), Stream(-seed)
            for stream, end in zip(pushed, ends, strict=True):
                stream.push(end, 1 << 20)
            streams.append(pushed)
        assert stays_quiet(target.sock, 1)
        assert processor_time(worker) - before < 0.9, "the worker is busy polling"
        waiting = list(filter(is_open, others))
        print(f"{len(sessions)} sessions; of 11 others {len(waiting)} wait")
        for pushed, ends in zip(streams, sessions, strict=True):
            assert arrives(ends, pushed)
            ends[0].close()
            ends[1].close()
        for client in waiting:
            if is_open(client):
                assert exchanges((client, stack.enter_context(target.accept())))
        with pair.open() as ends:
            assert exchanges(ends)
    assert served.workers() == [worker]
    assert "Traceback" not in served.log()


# Too little memory


@pytest.mark.root
def test_without_memory_sessions_lose_nothing(start_superd: Start, target: Target) -> None:
    """Data that is not read cannot be kept until memory can be allocated again."""
    own = f"\nuser = {os.getuid()}\ngroup = {os.getgid()}"  # a user whose limits the test may set
    served = start_superd(entry("web", target, more=own))
    pair = Pair(served, "web", target)
    (worker,) = served.workers()
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(pair.open()) for _ in range(12)]
        assert all(map(exchanges, sessions))
        hard = resource.prlimit(worker, resource.RLIMIT_AS)[1]
        resource.prlimit(worker, resource.RLIMIT_AS, (address_space(worker) + (128 << 10), hard))
        streams = [(Stream(2 * n), Stream(2 * n + 1)) for n in range(len(sessions))]
        for pushed, ends in zip(streams, sessions, strict=True):
            for stream, end in zip(pushed, ends, strict=True):
                stream.fill(end)
        resource.prlimit(worker, resource.RLIMIT_AS, (hard, hard))
        for pushed, ends in zip(streams, sessions, strict=True):
            assert arrives(ends, pushed)
    served.wait_until_idle("web")
    with pair.open() as ends:
        assert exchanges(ends)
    assert served.workers() == [worker]
    assert served.counts("web")["errors"] == 0


def address_space(pid: int) -> int:
    """Return the bytes that count against RLIMIT_AS."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


# Workers that end


def test_a_killed_worker_ends_only_sessions_of_its_pool(start_superd: Start) -> None:
    with contextlib.ExitStack() as stack:
        targets = {name: stack.enter_context(contextlib.closing(Target())) for name in "ab"}
        served = start_superd(
            "".join(entry(name, t, more=f'\npool = "{name}"') for name, t in targets.items())
        )
        first, second = (Pair(served, name, target) for name, target in targets.items())
        (client, server), ends = (
            stack.enter_context(first.open()),
            stack.enter_context(second.open()),
        )
        streams = Stream(1), Stream(2)
        for stream, end in zip(streams, ends, strict=True):
            stream.fill(end)
        (victim,) = served.workers("a")
        os.kill(victim, signal.SIGKILL)
        for end in (client, server):
            assert receive_to_end(end)[0] == b""
        until(lambda: served.workers("a") not in ([], [victim]), "a successor")
        with first.open() as others:
            assert exchanges(others)
        assert arrives(ends, streams)


def test_a_drain_lets_sessions_finish(start_superd: Start, target: Target) -> None:
    served = start_superd('[daemon]\ndrain-timeout = "60s"\n' + entry("web", target))
    with Pair(served, "web", target).open() as ends:
        streams = Stream(1), Stream(2)
        for stream, end in zip(streams, ends, strict=True):
            stream.fill(end)
        served.signal(signal.SIGTERM)
        until(lambda: served.answer()["state"] == "draining", "the drain")
        assert arrives(ends, streams)
    assert served.wait() == 0


def test_the_end_of_the_drain_resets_open_sessions(start_superd: Start, target: Target) -> None:
    served = start_superd('[daemon]\ndrain-timeout = "500ms"\n' + entry("web", target))
    with Pair(served, "web", target).open() as ends:
        assert exchanges(ends)
        served.signal(signal.SIGTERM)
        for end in ends:
            assert receive_to_end(end) == (b"", "reset")
    assert served.wait(EVENT_TIMEOUT) == 0
    assert "1 connections cut at the end of drain-timeout" in served.log()
