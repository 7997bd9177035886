"""The worker's client of the resolver: what it requests and caches. The test is the resolver."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from superd.worker.runtime import names as module
from superd.worker.runtime.names import Names, answer_to

Loop = asyncio.AbstractEventLoop


@pytest.fixture
def loop() -> Iterator[Loop]:
    one = asyncio.SelectorEventLoop()
    yield one
    one.close()


class FakeResolver:
    """A resolver that sends what the test sends; `found` has all answers that the worker got."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind("")
        self.listener.listen()
        self.listener.settimeout(5)
        self.names = Names(loop, self.listener.getsockname().decode())
        self.sock: socket.socket | None = None
        self.found: list[tuple[str, ...]] = []

    def ask(self, *names: str) -> None:
        for name in names:
            self.names.look_up_addresses(name, self.found.append)

    def request(self) -> str:
        if self.sock is None:
            self.sock, _ = self.listener.accept()
            self.sock.settimeout(5)
        return self.sock.recv(1024).decode()

    def send(self, data: bytes) -> None:
        assert self.sock is not None
        self.sock.send(data)
        for _ in range(3):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


@pytest.fixture
def fake(loop: Loop) -> Iterator[FakeResolver]:
    one = FakeResolver(loop)
    yield one
    one.close()
    one.names._disconnect()
    one.listener.close()


def test_an_answer_is_cached_until_it_expires(fake: FakeResolver, loop: Loop) -> None:
    fake.ask("Host.example")
    assert fake.request() == "=host.example"
    fake.ask("host.example")
    fake.send(answer_to("=host.example", ["2001:db8::1", "192.0.2.1"], 0.2))
    assert fake.found == [("2001:db8::1", "192.0.2.1")] * 2
    fake.ask("host.example")
    assert len(fake.found) == 3
    loop.run_until_complete(asyncio.sleep(0.21))
    fake.ask("host.example")
    assert len(fake.found) == 3
    assert fake.request() == "=host.example"


def test_what_needs_no_look_up_is_answered_at_once(fake: FakeResolver) -> None:
    fake.ask("192.0.2.1", "2001:db8::1", "no name", "x" * 300, "")
    assert fake.found == [("192.0.2.1",), ("2001:db8::1",), (), (), ()]
    assert len(fake.names) == 0


def test_without_a_resolver_nothing_is_found(loop: Loop) -> None:
    found: list[object] = []
    Names(loop, "").look_up_addresses("host.example", found.append)
    Names(loop, "no-such-socket").look_up_addresses("host.example", found.append)
    Names(loop, "").look_up_name("192.0.2.1", found.append)
    assert found == [(), (), ""]


@pytest.mark.parametrize("answer", [b"", b"x", b"=host.example\0x\0a", b"=host.example\0\xff"])
def test_the_worker_disconnects_from_a_resolver_that_ends_or_sends_invalid_answers(
    fake: FakeResolver, answer: bytes
) -> None:
    fake.ask("host.example")
    fake.request()
    if answer:
        fake.send(answer)
    else:
        fake.close()
        fake.loop.call_soon(fake.loop.stop)
        fake.loop.run_forever()
    fake.loop.call_soon(fake.loop.stop)
    fake.loop.run_forever()
    assert fake.found == [()]
    fake.close()
    fake.ask("host.example")
    assert fake.request() == "=host.example"  # a new connection


def test_a_callback_that_fails_does_not_keep_others_from_running(fake: FakeResolver) -> None:
    errors: list[object] = []
    fake.loop.set_exception_handler(lambda loop, context: errors.append(context["exception"]))
    fake.names.look_up_addresses("host.example", lambda found: [][1])
    fake.ask("host.example")
    fake.request()
    fake.send(answer_to("=host.example", ["192.0.2.1"], 1))
    assert fake.found == [("192.0.2.1",)]
    assert [type(error) for error in errors] == [IndexError]


def test_requests_beyond_the_queue_find_nothing_and_the_others_are_answered(
    fake: FakeResolver,
) -> None:
    hosts = [f"host-{number}.example" for number in range(module.MAX_PENDING + 10)]
    fake.ask(*hosts)
    pending = len(fake.names)
    assert 100 < pending <= module.MAX_PENDING
    assert fake.found == [()] * (len(hosts) - pending)
    for number in range(pending):
        assert fake.request() == f"={hosts[number]}"
        fake.send(answer_to(f"={hosts[number]}", ["192.0.2.1"], 60))
    assert fake.found.count(("192.0.2.1",)) == pending
    assert len(fake.names._cache) <= module.MAX_CACHED
