"""Timeouts: for the first byte, for idleness, for a session. Other connections stay open."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import time
from collections.abc import Iterable

import pytest

from tests.support.clients import connect_many, connect_unix, is_open
from tests.support.harness import EVENT_TIMEOUT, Superd, exchange

TIMEOUT = 0.5  # seconds, of every service in TOML

PLUGIN = """
    import asyncio
    from superd.plugin import Service, hookimpl

    class {name}(Service):
        name = "{plugin}"
        {method}

    @hookimpl
    def superd_services():
        return [{name}]
"""

STREAM = """
        async def stream(self, conn):
            async for line in conn:
                await conn.send(line)
"""

DEAF = """
        async def stream(self, conn):
            while True:
                try:
                    await conn.read()
                    await asyncio.sleep(3600)
                except BaseException:
                    await asyncio.sleep(0)
"""

TAKEOVER = """
        async def takeover(self, sock, conn):
            loop = asyncio.get_running_loop()
            while data := await loop.sock_recv(sock, 100):
                await loop.sock_sendall(sock, data)
"""

PLUGINS = {
    name: PLUGIN.format(name=name.title(), plugin=name, method=method)
    for name, method in (("lines", STREAM), ("deaf", DEAF), ("taken", TAKEOVER))
}

ENTRY = """
[service.{name}]
plugin = "{plugin}"
listen = ["tcp://127.0.0.1:0", "unix://{{directory}}/{name}"]
{key} = "500ms"
"""

KEYS = {"first": "first-byte-timeout", "idle": "idle-timeout", "session": "session-timeout"}

TOML = """
[service.free]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
""" + "".join(
    ENTRY.format(name=f"{plugin}-{kind}", plugin=plugin, key=key)
    for plugin in ("echo", "lines", "deaf", "taken", "chargen")
    for kind, key in KEYS.items()
)


def seconds_until_closed(clients: Iterable[socket.socket], began: float) -> list[float]:
    """Return how long after `began` each client was closed, in the order of their ends."""
    poll = select.poll()
    still_open = {client.fileno() for client in clients}
    for number in still_open:
        poll.register(number, select.POLLRDHUP)
    ends: list[float] = []
    while still_open and time.monotonic() - began < EVENT_TIMEOUT:
        for number, _ in poll.poll(1000):
            poll.unregister(number)
            still_open.remove(number)
            ends.append(time.monotonic() - began)
    assert not still_open, f"{len(still_open)} clients are still open"
    return ends


def stay_silent(served: Superd, each: int) -> None:
    """Check that silent clients of services with timeouts are closed in time, and only they."""
    services = [f"{plugin}-{kind}" for plugin in ("echo", "lines", "taken") for kind in KEYS]
    with connect_many(served.address("free"), 20) as others, contextlib.ExitStack() as stack:
        began = time.monotonic()
        silent = [
            stack.enter_context(connect_many(served.address(name), each)) for name in services
        ]
        ends = seconds_until_closed(itertools.chain(*silent), began)
        for client in others:
            assert exchange(client, b"well") == b"well"
    print(f"{len(ends)} closed between {min(ends):.2f} and {max(ends):.2f} s")
    assert min(ends) >= 0.9 * TIMEOUT
    assert max(ends) < TIMEOUT + 3  # 0.25 s late on an idle machine
    for service in services:
        served.wait_until_idle(service)
        assert served.counts(service)["errors"] == 0
    assert "failed" not in served.log()


def test_silent_clients_are_closed_after_their_timeout_and_other_clients_are_not(
    served: Superd,
) -> None:
    stay_silent(served, each=30)


@pytest.mark.soak
def test_a_thousand_silent_clients_are_closed_after_their_timeout(served: Superd) -> None:
    stay_silent(served, each=120)


def test_clients_that_send_data_are_not_closed(served: Superd) -> None:
    services = [f"{p}-{kind}" for p in ("echo", "lines", "taken") for kind in ("first", "idle")]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(served.connect(service)) for service in services]
        for _ in range(6):
            for client in clients:
                client.sendall(b"x\n")
                assert client.recv(100) == b"x\n"
            quiet, _, _ = select.select(clients, [], [], TIMEOUT / 3)
            assert not quiet  # no client was closed in a pause
        assert all(map(is_open, clients))


def test_a_client_that_only_reads_is_not_idle_but_reaches_the_first_byte_timeout(
    served: Superd,
) -> None:
    lasted = {}
    for kind in ("first", "idle"):
        began = time.monotonic()
        with served.connect(f"chargen-{kind}") as client, contextlib.suppress(ConnectionError):
            while time.monotonic() - began < 3 * TIMEOUT and client.recv(65536):
                pass
        lasted[kind] = time.monotonic() - began
    assert lasted["first"] < 3 * TIMEOUT <= lasted["idle"]


def test_the_session_timeout_closes_clients_that_send_data(served: Superd) -> None:
    with served.connect("echo-session") as client, contextlib.suppress(ConnectionError):
        began = time.monotonic()
        while time.monotonic() - began < EVENT_TIMEOUT:
            client.sendall(b"x")
            if not client.recv(1):
                break
    assert 0.9 * TIMEOUT <= time.monotonic() - began < TIMEOUT + 3


def test_clients_are_closed_even_if_the_plugin_ignores_its_cancellation(served: Superd) -> None:
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(served.connect(f"deaf-{kind}")) for kind in KEYS]
        assert max(seconds_until_closed(clients, began)) < TIMEOUT + 3
    assert exchange(served.connect("free"), b"well") == b"well"


def test_unix_clients_have_the_same_timeouts(served: Superd) -> None:
    began = time.monotonic()
    with (
        connect_unix(served.directory / "echo-idle") as first,
        connect_unix(served.directory / "lines-idle") as second,
    ):
        ends = seconds_until_closed([first, second], began)
    assert 0.9 * TIMEOUT <= min(ends) <= max(ends) < TIMEOUT + 3


def test_unix_sockets_that_a_plugin_took_over_are_never_idle(
    served: Superd,
) -> None:
    """The kernel reports no activity of unix sockets."""
    with connect_unix(served.directory / "taken-idle") as client:
        client.settimeout(3 * TIMEOUT)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.sendall(b"x")
        assert client.recv(1) == b"x"
