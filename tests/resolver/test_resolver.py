"""The resolver's answers to workers, with lookups that the test controls."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from superd.resolver.addresses import Found
from superd.resolver.resolver import MAX_PENDING, Resolver
from superd.worker.runtime.names import Names
from tests.support.harness import EVENT_TIMEOUT


class Running:
    """A resolver and its clients on one loop; `looked_up` are the names that were looked up."""

    def __init__(self) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self.looked_up: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.answers: dict[str, Found] = {}
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind("")
        self.listener.listen()
        self.address = self.listener.getsockname().decode()
        self.resolver = Resolver(
            self.loop, self.listener, {os.geteuid()}, lambda host: "host.example", self.addresses_of
        )
        self.loop.add_reader(self.listener, self.resolver.accept)

    async def addresses_of(self, name: str, is_again: bool) -> Found:
        self.looked_up.append(f"{name} again" if is_again else name)
        await self.gate.wait()
        return self.answers[name]

    def worker(self) -> Names:
        return Names(self.loop, self.address)

    def half_an_hour_later(self) -> None:
        """Have all answers half an hour older, for the resolver."""
        for request, answer in self.resolver.cache.items():
            older = answer._replace(since=answer.since - 1800, until=answer.until - 1800)
            self.resolver.cache[request] = older

    def wait_for(self, condition: Callable[[], object]) -> None:
        async def poll() -> None:
            while not condition():
                await asyncio.sleep(0.001)

        self.loop.run_until_complete(asyncio.wait_for(poll(), EVENT_TIMEOUT))


@pytest.fixture
def running() -> Iterator[Running]:
    one = Running()
    yield one
    one.resolver.threads.shutdown()
    for client in one.resolver.clients:
        client.close()
    one.listener.close()
    one.loop.close()


def test_both_kinds_of_requests_are_answered_on_one_connection(running: Running) -> None:
    running.answers["host.example"] = (("2001:db8::1", "192.0.2.1"), 60.0)
    found: list[object] = []
    names = running.worker()
    names.look_up_addresses("host.example", found.append)
    running.wait_for(lambda: len(found) == 1)
    names.look_up_name("192.0.2.1", found.append)
    running.wait_for(lambda: len(found) == 2)
    assert found == [("2001:db8::1", "192.0.2.1"), "host.example"]
    names._disconnect()


def test_another_worker_gets_the_rest_of_the_ttl(running: Running) -> None:
    running.answers["host.example"] = (("192.0.2.1",), 3600.0)
    found: list[object] = []
    first, second = running.worker(), running.worker()
    first.look_up_addresses("host.example", found.append)
    running.wait_for(lambda: len(found) == 1)
    running.half_an_hour_later()
    second.look_up_addresses("host.example", found.append)
    running.wait_for(lambda: len(found) == 2)
    assert running.looked_up == ["host.example"]
    assert second._cache["=host.example"][1] < first._cache["=host.example"][1] - 1700
    first._disconnect()
    second._disconnect()


def test_equal_requests_of_several_workers_are_looked_up_once(running: Running) -> None:
    running.answers["host.example"] = (("192.0.2.1",), 60.0)
    running.gate.clear()
    found: list[object] = []
    workers = [running.worker() for _ in range(3)]
    for names in workers:
        names.look_up_addresses("host.example", found.append)
    running.wait_for(lambda: len(running.resolver.pending.get("=host.example", ())) == 3)
    running.gate.set()
    running.wait_for(lambda: len(found) == 3)
    assert running.looked_up == ["host.example"]
    for names in workers:
        names._disconnect()


def test_a_lookup_that_fails_finds_nothing(running: Running) -> None:
    found: list[object] = []
    names = running.worker()
    names.look_up_addresses("unexpected.example", found.append)  # raises KeyError
    running.wait_for(lambda: found)
    assert found == [()]
    names._disconnect()


@pytest.mark.parametrize(
    "request_",
    [b"=", b"=no name", b"=HOST", b"=127.1", b"=\xff", b"=" + b"x" * 2000, b"host", b"x"],
)
def test_a_client_with_an_invalid_request_is_disconnected(
    running: Running, request_: bytes
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect("\0" + running.address.lstrip("\0"))
        client.setblocking(False)
        client.send(request_)
        assert running.loop.run_until_complete(running.loop.sock_recv(client, 100)) == b""
    assert running.looked_up == []


def test_requests_beyond_the_limit_find_nothing(running: Running) -> None:
    for number in range(MAX_PENDING):
        running.resolver.pending[f"={number}.example"] = set()
    found: list[object] = []
    names = running.worker()
    names.look_up_addresses("host.example", found.append)
    running.wait_for(lambda: found)
    assert found == [()]
    names._disconnect()


def test_an_address_that_fails_is_looked_up_again_before_its_ttl_is_over(running: Running) -> None:
    running.answers["host.example"] = (("192.0.2.1",), 3600.0)
    found: list[object] = []

    def ask(name: str = "host.example") -> object:
        names = running.worker()
        names.look_up_addresses(name, found.append)
        running.wait_for(lambda: found)
        names._disconnect()
        return found.pop()

    def distrust() -> None:
        """Do as a worker that has had the answer for a while."""
        names = running.worker()
        names._cache["=host.example"] = (("192.0.2.1",), 1e9, running.loop.time() - 60)
        names.distrust("host.example")
        names.look_up_addresses("other.example", found.append)  # answered after that was read
        running.wait_for(lambda: found)
        found.clear()
        names._disconnect()

    assert ask() == ("192.0.2.1",)
    running.answers["host.example"] = (("192.0.2.2",), 3600.0)
    distrust()
    assert ask() == ("192.0.2.1",)  # it was looked up just now
    running.half_an_hour_later()
    distrust()
    assert ask() == ("192.0.2.2",)
    running.half_an_hour_later()
    running.answers["host.example"] = ((), 5.0)
    distrust()
    assert ask() == ("192.0.2.2",)  # there is no better answer
    names = [name for name in running.looked_up if name.startswith("host.example")]
    assert names == ["host.example", "host.example again", "host.example again"]


def test_a_worker_distrusts_only_an_answer_that_it_has_had_for_a_while(running: Running) -> None:
    running.answers["host.example"] = (("192.0.2.1",), 3600.0)
    found: list[object] = []
    names = running.worker()
    names.distrust("host.example")  # of which it knows nothing
    names.look_up_addresses("host.example", found.append)
    running.wait_for(lambda: found)
    names.distrust("host.example")
    names.look_up_addresses("host.example", found.append)
    assert found == [("192.0.2.1",)] * 2  # at once, by the worker's own memory
    names._disconnect()
