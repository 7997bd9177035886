"""Plugins that relay a connection's bytes themselves: an echo that can also raise on demand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.clients import receive_to_end
from tests.support.harness import Superd, exchange, make_plugin, until

PLUGIN = """
    import select
    import socket

    from superd.plugin import End, Relay, Service, Unavailable, hookimpl

    FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


    class Echo(Relay):
        sent = received = 0

        def __init__(self, sock, conn, poller):
            self.sock, self.conn, self.poller = sock, conn, poller
            poller.add(sock.fileno(), self)

        def ready(self, events):
            if not events & (select.EPOLLIN | select.EPOLLRDHUP):
                return
            try:
                data = self.sock.recv(4096, FLAGS)
                self.received += len(data)
                self.sent += self.sock.send(data, FLAGS)
            except BlockingIOError:
                return
            if data == b"raise":
                raise RuntimeError("on demand")
            if data == b"pause":
                raise Unavailable("not today")
            if data:
                self.poller.again(self.sock.fileno(), self)
            else:
                self.cut()
                self.conn.ended(End.CLIENT)

        def failed(self, error):
            self.conn.failed(error)

        def cut(self):
            if self.sock.fileno() >= 0:
                self.conn.log("info", "cut")
                self.poller.forget(self.sock.fileno())
                self.sock.close()


    class EchoService(Service):
        name = "relayed"

        def relay(self, sock, conn):
            return Echo(sock, conn, self.poller)


    @hookimpl
    def superd_services():
        return [EchoService]
    """

TOML = """
[daemon]
loop = "{loop}"

[service.relayed]
plugin = "relayed"
listen = "tcp://127.0.0.1:0"
record = []
"""
LOOPS = ["auto", "uvloop", "asyncio"]


@pytest.fixture(scope="module", params=LOOPS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Superd]:
    directory = tmp_path_factory.mktemp("relays")
    env = make_plugin(directory / "plugins", "relayed", PLUGIN)
    superd = Superd(directory, TOML.format(loop=request.param), env=env)
    try:
        yield superd.start()
    finally:
        superd.stop()


def test_a_relay_echoes_the_data_of_its_client(served: Superd) -> None:
    assert exchange(served.connect("relayed"), b"hello" * 100) == b"hello" * 100


@pytest.mark.parametrize(("word", "message"), [("raise", "on demand"), ("pause", "not today")])
def test_an_exception_in_a_relay_is_logged_and_ends_only_its_connection(
    served: Superd, word: str, message: str
) -> None:
    workers, before = served.workers(), served.log().count("info: cut ")
    with served.connect("relayed") as other:
        with served.connect("relayed") as client:
            client.sendall(word.encode())
            assert receive_to_end(client)[0] == word.encode()
        until(lambda: served.log().count("info: cut ") > before, "the relay to be cut")
        served.wait_for_log(message)
        assert exchange(other, b"still there") == b"still there"
    served.wait_until_idle("relayed")
    assert served.workers() == workers
