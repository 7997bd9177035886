"""Rules for names: only a confirmed one counts, in a jail too, and whatever a name server does."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.dns import NameServer, name_server
from tests.support.harness import EVENT_TIMEOUT, Superd, until
from tests.support.namespaces import Namespace, network_namespace
from tests.support.proc import NOBODY, assert_powerless, descriptors

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
    """A machine with a name server and superd."""

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


def test_a_name_counts_if_it_leads_back_to_the_address(net: Net) -> None:
    net.names.names["127.0.0.2"] = b"Host.EXAMPLE"
    net.names.addresses[b"host.example"] = "127.0.0.2"
    assert net.is_admitted("friends", "127.0.0.2")
    asked = net.names.questions
    assert net.is_admitted("friends", "127.0.0.2")
    assert net.names.questions == asked  # it is remembered


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
def test_a_name_that_is_not_confirmed_is_none(net: Net, trick: str) -> None:
    told, name, address = SPOOFED[trick]
    if told:
        net.names.names["127.0.0.2"] = told
    if name:
        net.names.addresses[name] = address
    assert not net.is_admitted("friends", "127.0.0.2")
    assert not net.is_admitted("others", "127.0.0.2")  # it might be the one that is denied


def test_a_name_that_is_denied_keeps_out_and_another_does_not(net: Net) -> None:
    for address, name in (("127.0.0.2", b"bad.example"), ("127.0.0.3", b"good.example")):
        net.names.names[address] = name
        net.names.addresses[name] = address
    assert not net.is_admitted("others", "127.0.0.2")
    assert net.is_admitted("others", "127.0.0.3")
    assert net.is_admitted("friends", "127.0.0.2")


def test_a_name_server_that_fails_admits_nobody(net: Net) -> None:
    net.names.fails = True
    assert not net.is_admitted("friends", "127.0.0.2")


def test_a_name_server_that_says_nothing_holds_up_nobody_else(net: Net) -> None:
    net.names.is_silent = True
    waiting = [net.connect("friends", f"127.0.0.{number}") for number in range(2, 40)]
    until(lambda: net.names.questions, "somebody to be asked for")
    for number in range(20):
        assert net.is_admitted("plain", f"127.0.1.{number + 1}")
        assert net.is_admitted("friends", "127.0.0.99")
    for client in waiting:
        with client:
            assert client.recv(1) == b""
    assert net.served.counts("friends")["refused-access"] == len(waiting)


def test_who_waits_for_a_name_has_one_of_the_places_of_its_source(net: Net) -> None:
    net.names.is_silent = True
    waiting = [net.connect("few", "127.0.0.2") for _ in range(5)]
    until(lambda: net.served.counts("few")["active"] == 5, "five to have places")
    assert not net.is_admitted("few", "127.0.0.2")
    for client in waiting[:2]:
        client.close()
    for client in waiting[2:]:
        with client:
            assert client.recv(1) == b""
    net.served.wait_until_idle("few")
    assert not net.is_admitted("few", "127.0.0.2")
    counts = net.served.counts("few")
    assert (counts["refused-max-per-source"], counts["refused-access"]) == (1, 6)


def test_a_resolver_that_dies_is_replaced_and_its_clients_are_refused(net: Net) -> None:
    net.names.names["127.0.0.2"] = b"host.example"
    net.names.addresses[b"host.example"] = "127.0.0.2"
    net.names.is_silent = True
    first = net.resolver
    with net.connect("friends", "127.0.0.2") as client:
        until(lambda: net.names.questions, "the name to be asked for")
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


def test_everything_is_gone_after_the_stop(net: Net) -> None:
    resolver = net.resolver
    assert net.served.stop() == 0
    assert not Path(f"/proc/{resolver}").exists()
