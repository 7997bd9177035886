"""Targets by name: looked up when needed, also from a jail, and tried at all their addresses.

Each test has a network namespace of its own, with a name server whose answers it controls.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.dns import NameServer, name_server
from tests.support.harness import EVENT_TIMEOUT, Superd, until
from tests.support.namespaces import Namespace, join, network_namespace

pytestmark = [pytest.mark.root, pytest.mark.tool("ip")]

BY_NAME = """
[daemon]
record-log = "stderr"

[service.web]
plugin = "forward"
listen = ["tcp://127.0.0.1:7001", "udp://127.0.0.1:7001"]
chroot = "{jail}"
options = {{ to = "{to}", {more} }}
"""


class Network:
    """A network namespace with a name server, superd, and servers on several addresses."""

    def __init__(self, space: Namespace, names: NameServer, start: Start, jail: Path) -> None:
        self.space = space
        self.names = names
        self.start = start
        self.jail = jail
        self.served: Superd | None = None

    def serve(self, to: str = "app.example:7002", more: str = "") -> Superd:
        text = BY_NAME.format(jail=self.jail, to=to, more=more)
        self.served = self.start(text, *self.space.wrapper)
        return self.served

    def listener(self, host: str) -> socket.socket:
        with self.space.inside():
            sock = socket.create_server(
                (host, 7002), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            )
        sock.settimeout(EVENT_TIMEOUT)
        return sock

    def connect(self) -> socket.socket:
        with self.space.inside():
            return socket.create_connection(("127.0.0.1", 7001), EVENT_TIMEOUT)


@pytest.fixture
def net(start_superd: Start, jail: Path) -> Iterator[Network]:
    with network_namespace() as space, name_server(space) as names:
        space.add_address("fd00::1")
        space.add_address("fd00::2")
        made = Network(space, names, start_superd, jail)
        yield made
        if made.served is not None:
            made.served.stop()


def reaches(net: Network, listener: socket.socket) -> bool:
    """Tell whether a client's bytes arrive at a listener."""
    with net.connect() as client:
        client.sendall(b"hello")
        with listener.accept()[0] as target:
            target.settimeout(EVENT_TIMEOUT)
            return target.recv(5) == b"hello"


def test_a_name_is_looked_up_for_the_first_client(net: Network) -> None:
    net.names.addresses[b"app.example"] = "127.0.0.2"
    served = net.serve()
    assert net.names.questions == 0
    with net.listener("127.0.0.2") as target:
        assert reaches(net, target)
        asked = net.names.questions
        assert reaches(net, target)
        assert net.names.questions == asked > 0
    served.wait_for_log(r"closed .* target=tcp://127\.0\.0\.2:7002 connect=")

    def shown() -> list[str]:
        rows = served.answer()["services"][0]["rows"]
        return [row["target"] for row in rows if row["served"] == 2]

    assert until(shown, "the target in the status") == ["tcp://app.example:7002"]


def test_a_changed_address_is_used_once_the_ttl_is_over(net: Network) -> None:
    net.names.ttl = 1
    net.names.addresses[b"app.example"] = "127.0.0.2"
    net.serve()
    with net.listener("127.0.0.2") as old, net.listener("127.0.0.3") as new:
        assert reaches(net, old)
        net.names.addresses[b"app.example"] = "127.0.0.3"
        old.settimeout(0.05)
        new.setblocking(False)

        def uses_new_address() -> bool:
            with net.connect() as client:
                client.sendall(b"x")
                try:
                    old.accept()[0].close()
                except TimeoutError:
                    new.accept()[0].close()
                    return True
            return False

        until(uses_new_address, "connections to the new address")


def test_an_address_that_refuses_is_looked_up_again_before_its_ttl_is_over(
    net: Network,
) -> None:
    """As a container that comes back with another address, whose name server has long TTLs."""
    net.names.ttl = 600
    net.names.addresses[b"app.example"] = "127.0.0.2"
    net.serve()
    with net.listener("127.0.0.2") as old:
        assert reaches(net, old)
    net.names.addresses[b"app.example"] = "127.0.0.3"
    with net.listener("127.0.0.3") as new:
        new.settimeout(0.05)

        def uses_new_address() -> bool:
            with contextlib.suppress(ConnectionError, TimeoutError), net.connect():
                new.accept()[0].close()
                return True
            return False

        until(uses_new_address, "connections to the new address")
    assert net.names.questions <= 12  # 2 types, again after each 5 s


def test_datagrams_are_forwarded_to_a_name(net: Network) -> None:
    net.names.addresses[b"app.example"] = "127.0.0.2"
    net.serve()
    with net.space.inside():
        target = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with target, client:
        target.bind(("127.0.0.2", 7002))
        for sock in (target, client):
            sock.settimeout(EVENT_TIMEOUT)
        client.connect(("127.0.0.1", 7001))
        client.send(b"one")
        client.send(b"two")
        data, source = target.recvfrom(100)
        assert (data, target.recv(100)) == (b"one", b"two")
        target.sendto(b"three", source)
        assert client.recv(100) == b"three"


def test_a_target_of_both_families_is_reached_by_the_one_that_answers(net: Network) -> None:
    net.names.addresses[b"app.example"] = "fd00::1 fd00::2 127.0.0.2"
    net.serve()
    with net.listener("127.0.0.2") as target:
        assert reaches(net, target)  # the other addresses refuse
    with net.listener("fd00::2") as target:
        assert reaches(net, target)


def test_an_address_that_does_not_answer_delays_by_a_quarter_of_a_second(net: Network) -> None:
    with network_namespace() as other:
        join(net.space, other)
        net.space.ip("address", "add", "2001:db8::1/64", "dev", "wire", "nodad")
        net.space.ip("address", "add", "192.0.2.1/24", "dev", "wire")
        # a neighbour that does not exist: packets to it are lost
        net.space.ip(
            "neighbour", "add", "2001:db8::9", "lladdr", "02:00:00:00:00:09", "dev", "wire"
        )
        net.names.addresses[b"app.example"] = "2001:db8::9 192.0.2.1"  # the preferred one first
        net.serve()
        with net.listener("192.0.2.1") as target, net.connect() as client:
            started = time.monotonic()
            target.accept()[0].close()
            assert 0.2 < time.monotonic() - started < 2.0
            client.settimeout(EVENT_TIMEOUT)
            assert client.recv(1) == b""


@pytest.mark.parametrize("answer", ["none", "fails"])
def test_a_name_without_an_address_resets_the_client_and_is_recorded(
    net: Network, answer: str
) -> None:
    net.names.fails = answer == "fails"
    served = net.serve()
    with pytest.raises(ConnectionResetError), net.connect() as client:
        client.recv(1)
    served.wait_for_log(r"end=unreachable .*its name has no address")
    served.wait_for_log(r"target tcp://app\.example:7002 is left out for 10 s")


def test_a_silent_name_server_delays_only_its_own_clients(net: Network) -> None:
    net.names.is_silent = True
    net.names.addresses[b"slow.example"] = "127.0.0.2"
    text = BY_NAME.format(jail=net.jail, to="slow.example:7002", more="connect-timeout = '1s'")
    echo = '[service.echo]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:7003"\n'
    net.served = net.start(text + echo, *net.space.wrapper)
    with net.connect() as waiting:
        with net.space.inside():
            other = socket.create_connection(("127.0.0.1", 7003), EVENT_TIMEOUT)
        with other:
            other.sendall(b"x")
            assert other.recv(1) == b"x"
        started = time.monotonic()
        with pytest.raises(ConnectionResetError):
            waiting.recv(1)
        assert time.monotonic() - started < 1.5


def test_bind_to_excludes_addresses_of_the_other_family(net: Network) -> None:
    net.names.addresses[b"app.example"] = "fd00::1 127.0.0.2"
    net.serve(more="bind-to = '127.0.0.9'")
    with net.listener("fd00::1"), net.listener("127.0.0.2") as target, net.connect():
        reached, source = target.accept()
        reached.close()
        assert source[0] == "127.0.0.9"


def test_targets_of_ipv4_are_used_while_ipv6_is_disabled(net: Network) -> None:
    """The kernel reports EADDRNOTAVAIL, as it does when all ports are used."""
    net.space.sysctl("net.ipv6.conf.all.disable_ipv6=1")
    to = '["[::1]:7002", "127.0.0.2:7002"]'
    text = BY_NAME.replace('"{to}"', "{to}").format(jail=net.jail, to=to, more="balance = 'first'")
    net.served = net.start(text, *net.space.wrapper)
    with net.listener("127.0.0.2") as target:
        assert reaches(net, target)
    with net.space.inside():
        target = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with target, client:
        target.settimeout(EVENT_TIMEOUT)
        target.bind(("127.0.0.2", 7002))
        client.sendto(b"hello", ("127.0.0.1", 7001))
        assert target.recv(100) == b"hello"
    net.served.wait_for_log(r"target tcp://\[::1\]:7002 is left out for 10 s: Cannot assign")


def test_a_reload_with_the_first_name_starts_a_resolver(net: Network) -> None:
    net.names.addresses[b"app.example"] = "127.0.0.3"
    served = net.serve(to="127.0.0.2:7002")
    assert served.answer()["resolver"] is None
    served.toml = served.toml.replace("127.0.0.2:7002", "app.example:7002")
    served.write()
    assert served.run("reload").returncode == 0
    with net.listener("127.0.0.3") as target:
        assert reaches(net, target)
