"""Rules for names: only a confirmed name counts, also in a jail, whatever a name server answers."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.dns import NameServer, name_server
from tests.support.harness import EVENT_TIMEOUT, Superd, command, until
from tests.support.namespaces import Namespace, network_namespace
from tests.support.proc import NOBODY, assert_powerless, descriptors
from tests.support.programs import run

pytestmark = [pytest.mark.root, pytest.mark.tool("ip")]

TOML = """
[defaults]
plugin = "echo"
chroot = "{jail}"

[service.friends]
listen = "tcp://127.0.0.1:7001"
allow = [".example", "127.0.0.99"]

[service.others]
listen = "tcp://127.0.0.1:7002"
deny = "bad.example"

[service.few]
listen = "tcp://127.0.0.1:7004"
deny = "bad.example"
max-per-source = 5

[service.plain]
listen = "tcp://127.0.0.1:7003"
"""
PORTS = {"friends": 7001, "others": 7002, "plain": 7003, "few": 7004}


class Net:
    """A network namespace with a name server and superd."""

    def __init__(self, space: Namespace, names: NameServer, served: Superd) -> None:
        self.space = space
        self.names = names
        self.served = served

    def connect(self, service: str, source: str) -> socket.socket:
        with self.space.inside():
            client = socket.socket()
        client.settimeout(EVENT_TIMEOUT)
        client.bind((source, 0))
        client.connect(("127.0.0.1", PORTS[service]))
        return client

    def is_admitted(self, service: str, source: str) -> bool:
        with self.connect(service, source) as client:
            try:
                client.sendall(b"x")
                return client.recv(1) == b"x"
            except ConnectionError:
                return False

    @property
    def resolver(self) -> int:
        return int(self.served.answer()["resolver"])


@pytest.fixture
def net(start_superd: Start, jail: Path) -> Iterator[Net]:
    with network_namespace() as space, name_server(space) as names:
        served = start_superd(TOML.replace("{jail}", str(jail)), *space.wrapper)
        yield Net(space, names, served)
        served.stop()


def test_a_name_counts_if_it_resolves_back_to_the_address(net: Net) -> None:
    net.names.names["127.0.0.2"] = b"Host.EXAMPLE"
    net.names.addresses[b"host.example"] = "127.0.0.2"
    assert net.is_admitted("friends", "127.0.0.2")
    asked = net.names.questions
    assert net.is_admitted("friends", "127.0.0.2")
    assert net.names.questions == asked  # the answer is cached


def test_an_address_rule_needs_no_name_server(net: Net) -> None:
    assert net.is_admitted("friends", "127.0.0.99")
    assert net.is_admitted("plain", "127.0.0.1")
    assert net.names.questions == 0


SPOOFED = {
    "no_name": (b"", b"", ""),
    "no_way_back": (b"host.example", b"", ""),
    "another_address": (b"host.example", b"host.example", "127.0.0.77"),
    "control_characters": (b"evil\n\x1b[2J.example", b"evil\n\x1b[2j.example", "127.0.0.2"),
    "too_long": (b".".join([b"x" * 60] * 4) + b".example", b"", ""),
    "an_address_as_a_name": (b"127.0.0.99", b"127.0.0.99", "127.0.0.2"),
}


@pytest.mark.parametrize("trick", SPOOFED)
def test_an_unconfirmed_name_does_not_count(net: Net, trick: str) -> None:
    answer, name, address = SPOOFED[trick]
    if answer:
        net.names.names["127.0.0.2"] = answer
    if name:
        net.names.addresses[name] = address
    assert not net.is_admitted("friends", "127.0.0.2")
    assert not net.is_admitted("others", "127.0.0.2")  # its true name might be the denied one


def test_a_denied_name_is_refused_and_another_name_is_admitted(net: Net) -> None:
    for address, name in (("127.0.0.2", b"bad.example"), ("127.0.0.3", b"good.example")):
        net.names.names[address] = name
        net.names.addresses[name] = address
    assert not net.is_admitted("others", "127.0.0.2")
    assert net.is_admitted("others", "127.0.0.3")
    assert net.is_admitted("friends", "127.0.0.2")


def test_explain_prints_the_rule_for_a_name_that_decides(net: Net) -> None:
    for address, name in (("127.0.0.2", b"bad.example"), ("127.0.0.3", b"good.example")):
        net.names.names[address] = name
        net.names.addresses[name] = address
    file = net.served.file

    def explained(service: str, source: str) -> str:
        asked = ("explain", service, source, "-c", str(file))
        done = run(*net.space.wrapper, *command(*asked))
        return done.stdout.decode().replace(f"{file}:", "")

    line = 1 + file.read_text().splitlines().index('deny = "bad.example"')
    why = "refuses 127.0.0.4, which has no confirmed name"
    assert (
        explained("others", "127.0.0.4") == f'refused (access): deny "bad.example" {why}, {line}\n'
    )
    assert explained("others", "127.0.0.2").startswith('refused (access): deny "bad.example" (bad')
    assert explained("others", "127.0.0.3") == "admitted: no rule refuses it\n"
    assert explained("friends", "127.0.0.4").startswith(
        "refused (access): allow has no entry for 127.0.0.4, "
    )
    assert explained("friends", "127.0.0.2").startswith('admitted: allow ".example" (bad.example)')


def test_a_client_is_refused_if_the_name_server_fails(net: Net) -> None:
    net.names.fails = True
    assert not net.is_admitted("friends", "127.0.0.2")


def test_a_silent_name_server_delays_no_client_that_needs_no_name(net: Net) -> None:
    net.names.is_silent = True
    pending = [net.connect("friends", f"127.0.0.{number}") for number in range(2, 40)]
    until(lambda: net.names.questions, "a question to the name server")
    for number in range(20):
        assert net.is_admitted("plain", f"127.0.1.{number + 1}")
        assert net.is_admitted("friends", "127.0.0.99")
    for client in pending:
        with client:
            assert client.recv(1) == b""
    assert net.served.counts("friends")["refused-access"] == len(pending)


def test_a_client_whose_name_is_looked_up_counts_against_the_limit_of_its_source(net: Net) -> None:
    net.names.is_silent = True
    pending = [net.connect("few", "127.0.0.2") for _ in range(5)]
    until(lambda: net.served.counts("few")["active"] == 5, "five counted clients")
    assert not net.is_admitted("few", "127.0.0.2")
    for client in pending[:2]:
        client.close()
    for client in pending[2:]:
        with client:
            assert client.recv(1) == b""
    net.served.wait_until_idle("few")
    assert not net.is_admitted("few", "127.0.0.2")
    counts = net.served.counts("few")
    assert (counts["refused-max-per-source"], counts["refused-access"]) == (1, 6)


def test_a_killed_resolver_is_replaced_and_its_pending_clients_are_refused(net: Net) -> None:
    net.names.names["127.0.0.2"] = b"host.example"
    net.names.addresses[b"host.example"] = "127.0.0.2"
    net.names.is_silent = True
    first = net.resolver
    with net.connect("friends", "127.0.0.2") as client:
        until(lambda: net.names.questions, "a question to the name server")
        os.kill(first, signal.SIGKILL)
        assert client.recv(1) == b""
    net.served.wait_for_log("the resolver was ended by SIGKILL; its successor starts now")
    net.names.is_silent = False
    until(lambda: net.is_admitted("friends", "127.0.0.2"), "the successor to answer")
    assert net.resolver != first


def test_the_resolver_has_no_privileges_and_no_listener(net: Net) -> None:
    net.is_admitted("friends", "127.0.0.2")
    assert_powerless(net.resolver, NOBODY, NOBODY)
    inodes = {d.target for d in descriptors(net.resolver) if d.target.startswith("socket:")}
    assert not inodes & listening(net)


def listening(net: Net) -> set[str]:
    """Return the sockets of superd's services, as /proc shows them."""
    found = set()
    with net.space.inside():
        for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]:
            columns = line.split()
            if int(columns[1].partition(":")[2], 16) in PORTS.values() and columns[3] == "0A":
                found.add(f"socket:[{columns[9]}]")
    assert len(found) == len(PORTS)
    return found


def test_a_stop_ends_the_resolver(net: Net) -> None:
    resolver = net.resolver
    assert net.served.stop() == 0
    assert not Path(f"/proc/{resolver}").exists()
