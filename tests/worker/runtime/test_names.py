"""The worker's half of names: what it asks, remembers and forgets; the test is the resolver."""

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


class Fake:
    """A resolver that says what the test says; `found` is all that the worker was told."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind("")
        self.listener.listen()
        self.listener.settimeout(5)
        self.names = Names(loop, self.listener.getsockname().decode())
        self.line: socket.socket | None = None
        self.found: list[tuple[str, ...]] = []

    def ask(self, *names: str) -> None:
        for name in names:
            self.names.addresses(name, self.found.append)

    def request(self) -> str:
        if self.line is None:
            self.line, _ = self.listener.accept()
            self.line.settimeout(5)
        return self.line.recv(1024).decode()

    def say(self, data: bytes) -> None:
        assert self.line is not None
        self.line.send(data)
        for _ in range(3):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def close(self) -> None:
        if self.line is not None:
            self.line.close()
            self.line = None


@pytest.fixture
def fake(loop: Loop) -> Iterator[Fake]:
    one = Fake(loop)
    yield one
    one.close()
    one.names._hang_up()
    one.listener.close()


def test_an_answer_is_remembered_for_its_time(fake: Fake, loop: Loop) -> None:
    fake.ask("Host.example")
    assert fake.request() == "=host.example"
    fake.ask("host.example")
    fake.say(answer_to("=host.example", ["2001:db8::1", "192.0.2.1"], 0.2))
    assert fake.found == [("2001:db8::1", "192.0.2.1")] * 2
    fake.ask("host.example")
    assert len(fake.found) == 3
    loop.run_until_complete(asyncio.sleep(0.21))
    fake.ask("host.example")
    assert len(fake.found) == 3
    assert fake.request() == "=host.example"


def test_what_needs_no_look_up_is_answered_at_once(fake: Fake) -> None:
    fake.ask("192.0.2.1", "2001:db8::1", "no name", "x" * 300, "")
    assert fake.found == [("192.0.2.1",), ("2001:db8::1",), (), (), ()]
    assert len(fake.names) == 0


def test_without_a_resolver_there_is_nothing(loop: Loop) -> None:
    found: list[object] = []
    Names(loop, "").addresses("host.example", found.append)
    Names(loop, "no-such-socket").addresses("host.example", found.append)
    Names(loop, "").ask("192.0.2.1", found.append)
    assert found == [(), (), ""]


@pytest.mark.parametrize("answer", [b"", b"x", b"=host.example\0x\0a", b"=host.example\0\xff"])
def test_a_resolver_that_goes_or_talks_nonsense_is_left(fake: Fake, answer: bytes) -> None:
    fake.ask("host.example")
    fake.request()
    if answer:
        fake.say(answer)
    else:
        fake.close()
        fake.loop.call_soon(fake.loop.stop)
        fake.loop.run_forever()
    fake.loop.call_soon(fake.loop.stop)
    fake.loop.run_forever()
    assert fake.found == [()]
    fake.close()
    fake.ask("host.example")
    assert fake.request() == "=host.example"  # its successor is asked


def test_who_asks_and_fails_does_not_keep_others_from_their_answer(fake: Fake) -> None:
    told: list[object] = []
    fake.loop.set_exception_handler(lambda loop, context: told.append(context["exception"]))
    fake.names.addresses("host.example", lambda found: [][1])
    fake.ask("host.example")
    fake.request()
    fake.say(answer_to("=host.example", ["192.0.2.1"], 1))
    assert fake.found == [("192.0.2.1",)]
    assert [type(error) for error in told] == [IndexError]


def test_more_than_the_line_holds_are_refused_and_the_others_answered(fake: Fake) -> None:
    hosts = [f"host-{number}.example" for number in range(module.MOST_WAITING + 10)]
    fake.ask(*hosts)
    waiting = len(fake.names)
    assert 100 < waiting <= module.MOST_WAITING
    assert fake.found == [()] * (len(hosts) - waiting)
    for number in range(waiting):
        assert fake.request() == f"={hosts[number]}"
        fake.say(answer_to(f"={hosts[number]}", ["192.0.2.1"], 60))
    assert fake.found.count(("192.0.2.1",)) == waiting
    assert len(fake.names._known) <= module.MOST_KNOWN
