"""Sessions over a transport: time-outs and stops at any moment of their life."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from superd.admission.access import UnixPeer
from superd.admission.gate import NO_SOURCE, Counters, Gate
from superd.admission.ledger import Ledger
from superd.admission.limits import Load
from superd.admission.reflection import ReflectionGuard
from superd.admission.scoreboard import Count, Roster, Scoreboard
from superd.config.model import Daemon
from superd.config.model import Service as Entry
from superd.net.addresses import Address, Transport
from superd.observe.connections import End, ServiceRecords, parsed
from superd.observe.records import Record, Threshold
from superd.plugin import Connection, Options, Request, Service, Waiting
from superd.plugin.methods import DATAGRAM_METHODS, STREAM_METHODS
from superd.worker.accept.acceptor import Acceptor
from superd.worker.engine import Engine
from superd.worker.lifeline import Lifeline
from superd.worker.runtime.context import Context
from superd.worker.runtime.heartbeat import Heartbeat
from superd.worker.runtime.loop import new_loop
from superd.worker.runtime.service import WorkerService
from superd.worker.serve.listener import ListenerHandoff
from superd.worker.serve.session import Session
from superd.worker.serve.stream import CHUNK_SIZE, ProtocolSession, advance

LOOPS = ["uvloop", "asyncio"]


class Echo(asyncio.Protocol):
    """Notes the calls that it gets, and echoes."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls
        self.sizes: list[int] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.calls.append("made")
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.sizes.append(len(data))
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.calls.append("pause")
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.calls.append("resume")
        self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")


class Everything(Service):
    """A plugin with every method; each test uses one of them."""

    name = "everything"

    def __init__(self) -> None:
        super().__init__(Options())
        self.calls: list[str] = []
        self.made: list[Echo] = []

    def protocol(self, conn: Connection) -> asyncio.Protocol:
        self.made.append(Echo(self.calls))
        return self.made[-1]

    async def stream(self, conn: Connection) -> None:
        self.calls.append("begun")
        try:
            await conn.readline()
        finally:
            self.calls.append("ended")

    async def takeover(self, sock: socket.socket, conn: Connection) -> None:
        self.calls.append("begun")
        try:
            await asyncio.sleep(3600)
        finally:
            self.calls.append("ended")

    def respond(self, request: Request) -> bytes:
        return b"answer"

    async def listener(self, sock: socket.socket, waiting: Waiting) -> str:
        self.calls.append("begun")
        try:
            await asyncio.sleep(3600)
        finally:
            self.calls.append("ended")
        return ""


class Bench:
    """An engine in this process, with one listener of a plugin that has one method."""

    def __init__(self, kind: str, method: str) -> None:
        self.loop = new_loop(kind)
        self.lifeline = Lifeline(memoryview(bytearray(8)).cast("Q"))
        self.log: list[Record] = []
        self.events: list[dict[str, Any]] = []
        heartbeat = Heartbeat(self.loop, self.lifeline)
        threshold, guard = Threshold("debug"), ReflectionGuard([])
        report, send = self.log.append, self.take_events
        self.context = Context(
            self.loop, 1, report, threshold, send, guard, 1.0, 0.0, heartbeat, "superd.toml"
        )
        self.engine = Engine(self.context)
        self.plugin = Everything()
        roster = Roster.of(["test"], 1)
        self.counters = counters = Counters(Ledger(roster), Scoreboard(roster), 0, Load())
        wait = method == "listener"
        entry = Entry.model_construct(plugin="everything", listen=(), wait=wait)
        gate = Gate.of("test", entry, Daemon(), counters, None)
        records = ServiceRecords(self.context.connection_log, "test", entry.record)
        found: Any = dict.fromkeys((*STREAM_METHODS, *DATAGRAM_METHODS))
        found[method] = getattr(self.plugin, method)
        self.service = WorkerService(
            "test", entry, self.plugin, gate.counts, gate, records, blocking=None, **found
        )
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.address = self.listener.getsockname()
        self.engine.add(self.service)
        self.engine.listen(self.service, Address(Transport.TCP, *self.address), self.listener)

    def client(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def accept(self) -> None:
        """Accept the pending client, without a turn of the loop after that."""
        (acceptor,) = self.context.sockets
        acceptor.start()
        assert isinstance(acceptor, Acceptor)
        acceptor.accept()

    def turn(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        """Let the loop turn until the condition holds."""

        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.001)

        self.loop.run_until_complete(asyncio.wait_for(wait(), seconds))

    def take_events(self, batch: bytes) -> bool:
        self.events += [parsed(line) for line in batch.splitlines()]
        return True

    @property
    def active(self) -> int:
        return int(self.service.counts[Count.ACTIVE])

    def close(self) -> None:
        for listener in self.context.sockets:
            listener.stop()
        try:
            self.turn(lambda: not self.context.connections and not self.context.lingering)
        finally:
            self.context.lingering.epoll.close()
            self.lifeline.close()
            self.loop.close()


@pytest.fixture(params=LOOPS)
def bench(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Bench]]:
    made: list[Bench] = []

    def make(method: str) -> Bench:
        made.append(Bench(request.param, method))
        return made[-1]

    yield make
    for one in made:
        one.close()


Make = Callable[[str], Bench]


@pytest.mark.parametrize("method", ["protocol", "stream"])
def test_a_connection_that_expires_before_it_begins_never_begins(bench: Make, method: str) -> None:
    at = bench(method)
    with at.client() as client:
        at.accept()
        (session,) = at.context.connections.values()
        session.expire(End.DRAIN)
        at.turn(lambda: not at.context.connections)
        assert client.recv(1) == b""
    assert at.plugin.calls == []
    assert at.active == 0
    assert at.log == []


@pytest.mark.parametrize("method", ["protocol", "stream", "takeover"])
@pytest.mark.parametrize("turns", range(4))
def test_a_stop_at_any_turn_ends_every_connection(bench: Make, method: str, turns: int) -> None:
    at = bench(method)
    with at.client() as client:
        at.accept()
        for _ in range(turns):
            at.loop.run_until_complete(asyncio.sleep(0))
        for session in list(at.context.connections.values()):
            session.expire(End.DRAIN)
            session.expire(End.DRAIN)
        at.turn(lambda: not (at.context.connections or at.context.lingering))
        assert client.recv(1) == b""
    calls = at.plugin.calls
    assert calls.count("begun") == calls.count("ended")
    assert calls.count("made") == calls.count("lost")
    assert at.active == 0
    assert at.log == []


@pytest.mark.parametrize("turns", range(4))
def test_a_stop_at_any_turn_ends_the_run_of_a_listener_and_releases_its_slot(
    bench: Make, turns: int
) -> None:
    at = bench("listener")
    handoff = at.context.sockets.pop()  # so that `close` does not stop it again
    assert isinstance(handoff, ListenerHandoff)
    with at.client():
        handoff.start()
        while not handoff.runs:
            at.loop.run_until_complete(asyncio.sleep(0))
        for _ in range(turns):
            at.loop.run_until_complete(asyncio.sleep(0))
        assert at.active == at.context.held == 1
        handoff.stop()
        handoff.cancel(End.DRAIN)
        at.turn(lambda: not handoff.runs)
    assert at.plugin.calls.count("begun") == at.plugin.calls.count("ended")
    assert at.active == at.context.held == 0
    at.context.connection_log.flush()
    assert [event["event"] for event in at.events] == ["accepted", "closed"]
    assert at.events[-1]["end"] == "drain"
    assert at.log == []


@pytest.mark.parametrize("method", ["protocol", "stream", "takeover"])
def test_a_connection_is_accounted_for_once_however_it_ends(bench: Make, method: str) -> None:
    at = bench(method)
    client = at.client()
    at.accept()
    (session,) = at.context.connections.values()
    assert isinstance(session, Session)
    at.turn(lambda: at.plugin.calls)
    assert at.active == 1
    session.abort()
    session.expire(End.DRAIN)
    client.close()
    at.turn(lambda: not at.context.connections)
    session.leave()
    assert at.active == 0


def test_a_socket_that_the_loop_rejects_is_closed_and_accounted_for(bench: Make) -> None:
    at = bench("protocol")
    ours, theirs = socket.socketpair()
    session = ProtocolSession()
    assert at.service.gate.admit(UnixPeer(0)) == NO_SOURCE
    session.begin(at.context, at.service, Transport.UNIX, "", NO_SOURCE, "unix:///x")
    with ours:
        theirs.close()
        advance(session.attach(theirs))
        at.turn(lambda: not at.context.connections)
    assert at.active == 0


def test_a_client_that_does_not_read_is_read_from_in_chunks(bench: Make) -> None:
    at = bench("protocol")
    with at.client() as client:
        at.accept()
        client.setblocking(False)
        sent = 0

        def stalled() -> bool:
            nonlocal sent
            try:
                while True:
                    sent += client.send(bytes(1 << 20))
            except BlockingIOError:
                return "pause" in at.plugin.calls

        at.turn(stalled)
        (session,) = at.context.connections.values()
        assert isinstance(session, ProtocolSession)
        assert 0 < session.get_write_buffer_size() <= CHUNK_SIZE
        assert not session.is_reading()
        assert max(at.plugin.made[0].sizes[-3:]) <= CHUNK_SIZE
    at.turn(lambda: "lost" in at.plugin.calls)


def test_calls_after_close_do_no_harm(bench: Make) -> None:
    at = bench("protocol")
    client = at.client()
    at.accept()
    at.turn(lambda: at.plugin.calls)
    transport = at.plugin.made[0].transport
    transport.write(b"before")
    transport.close()
    call_everything(transport)
    at.turn(lambda: client.recv(100, socket.MSG_PEEK) == b"before")
    client.close()
    at.turn(lambda: "lost" in at.plugin.calls)
    call_everything(transport)
    transport.abort()
    assert at.log == []


def call_everything(transport: asyncio.Transport) -> None:
    transport.write(b"after")
    transport.writelines([b"a", b"b"])
    transport.write_eof()
    transport.pause_reading()
    transport.resume_reading()
    transport.close()
    transport.set_write_buffer_limits(10, 5)
    assert transport.is_closing()
    assert transport.get_write_buffer_size() == 0
    assert transport.get_extra_info("nothing", "default") == "default"
