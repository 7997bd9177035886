"""The addresses of names and their lifetime, from DNS, /etc/hosts and the system.

A worker in an empty jail asks a real resolver, which asks the test's own name server.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.asking import JailedAsker
from tests.support.dns import FILES, A, NameServer, header, name_server, record
from tests.support.harness import until
from tests.support.namespaces import Namespace, network_namespace
from tests.support.proc import NOBODY, assert_powerless

pytestmark = [pytest.mark.root, pytest.mark.tool("ip")]

OURS = FILES | {
    "resolv.conf": FILES["resolv.conf"] + "search corp.example\n",
    "nsswitch.conf": FILES["nsswitch.conf"].replace("hosts: dns", "hosts: files dns"),
    "hosts": "192.0.2.200 written.example edited.example\n2001:db8::200 written.example\n",
}


class Net:
    """A network with a name server, a resolver and a worker; each test has its own `host`."""

    numbers = itertools.count()

    def __init__(self, space: Namespace, names: NameServer, asking: JailedAsker) -> None:
        self.space = space
        self.names = names
        self.asking = asking
        self.addresses = asking.addresses
        self.host = f"host-{next(self.numbers)}.example"

    def set_addresses(self, addresses: str) -> None:
        self.names.addresses[self.host.encode()] = addresses

    def write(self, file: str, text: str) -> None:
        # In place, as the file is mounted.
        Path("/etc/netns", self.space.name, file).write_text(text)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    with network_namespace() as space, name_server(space, OURS) as names:
        for address in ("192.0.2.1/24", "198.51.100.1/24", "2001:db8::1/64"):
            space.add_address(address)
        asking = JailedAsker(str(tmp_path_factory.mktemp("jail")), space.wrapper)
        yield Net(space, names, asking)
        asking.close()


@pytest.fixture
def net(running: Net) -> Iterator[Net]:
    names = running.names
    yield Net(running.space, names, running.asking)
    names.hostile, names.is_silent, names.fails, names.ttl = None, False, False, 60
    for file, text in OURS.items():
        running.write(file, text)


def test_only_the_resolver_loads_the_library_and_it_is_unprivileged(net: Net) -> None:
    net.set_addresses("192.0.2.7")
    assert net.addresses(net.host) == "192.0.2.7"
    assert net.asking.startup["modules"] == []
    assert_powerless(net.asking.resolver, NOBODY, NOBODY)


def test_addresses_are_in_the_order_of_the_system(net: Net) -> None:
    addresses = "203.0.113.9 198.51.100.7 2001:db8:ffff::9 2001:db8::7 192.0.2.7"
    net.set_addresses(addresses)
    code = (
        "import json, socket, sys;"
        "found = socket.getaddrinfo(sys.argv[1], None, type=socket.SOCK_STREAM);"
        "print(json.dumps([entry[4][0] for entry in found]))"
    )
    command = [*net.space.wrapper, sys.executable, "-c", code, net.host]
    done = subprocess.run(command, capture_output=True, check=True)
    found = net.addresses(net.host).split()
    assert sorted(found) == sorted(addresses.split())
    assert found[0] == "2001:db8::7"
    reachable = [
        one for one in json.loads(done.stdout) if not one.startswith(("203", "2001:db8:f"))
    ]
    assert [one for one in found if one in reachable] == reachable


def test_an_address_is_valid_for_its_ttl(net: Net) -> None:
    net.set_addresses("192.0.2.7")
    assert net.addresses(net.host) == "192.0.2.7"
    questions = net.names.questions
    net.set_addresses("192.0.2.8")
    assert net.addresses(net.host.upper()) == "192.0.2.7"
    assert net.names.questions == questions


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_changed_address_is_found_after_its_ttl(net: Net, ttl: int) -> None:
    net.names.ttl = ttl
    net.set_addresses("192.0.2.7")
    assert net.addresses(net.host) == "192.0.2.7"
    net.set_addresses("192.0.2.8")
    until(lambda: net.addresses(net.host) == "192.0.2.8", "the TTL to expire")


def test_equal_requests_are_looked_up_once(net: Net) -> None:
    net.set_addresses("192.0.2.7")
    questions = net.names.questions
    assert net.asking.ask(*[net.host] * 50) == {net.host: "192.0.2.7"}
    assert net.names.questions == questions + 2  # A and AAAA


def test_a_name_without_addresses_has_none(net: Net) -> None:
    net.names.addresses[b"empty.example"] = ""
    assert net.addresses("no-such.example") == ""
    assert net.addresses("empty.example") == ""
    net.names.fails = True
    assert net.addresses("fails.example") == ""


LOOK_UP = """
import asyncio, sys
from superd.resolver.addresses import Addresses

async def main():
    addresses = Addresses(asyncio.get_running_loop(), failure_ttl=0.2)
    for name in sys.stdin:
        print(*await addresses.look_up(name.strip()), flush=True)

asyncio.run(main())
"""


def test_a_new_name_is_found_soon_whatever_its_name_server_says(net: Net) -> None:
    def no_such_name_for_an_hour(query: bytes, answer: bytes) -> bytes:
        soa = b"\0\0" + struct.pack("!IIIII", 1, 3600, 3600, 3600, 3600)
        authority = struct.pack("!HH", 1, 0)
        return (
            answer[:8]
            + authority
            + answer[12:]
            + b"\0"
            + struct.pack("!HHIH", 6, 1, 3600, 22)
            + soa
        )

    with subprocess.Popen(
        [*net.space.wrapper, sys.executable, "-c", LOOK_UP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def look_up(name: str) -> str:
            assert process.stdin
            assert process.stdout
            print(name, file=process.stdin, flush=True)
            return process.stdout.readline()

        net.names.hostile = no_such_name_for_an_hour
        assert look_up("late.example") == "() 0.2\n"
        net.names.hostile = None
        net.names.addresses[b"late.example"] = "192.0.2.7"
        until(lambda: "192.0.2.7" in look_up("late.example"), "a new lookup")
        process.communicate()


def test_search_domains_are_used(net: Net) -> None:
    net.names.addresses[b"db.corp.example"] = "192.0.2.7"
    assert net.addresses("db") == "192.0.2.7"
    assert net.addresses("db.") == ""


def test_etc_hosts_is_read_without_a_name_server_and_again_after_an_edit(net: Net) -> None:
    questions = net.names.questions
    assert net.addresses("written.example") == "2001:db8::200 192.0.2.200"
    assert net.addresses("edited.example") == "192.0.2.200"
    net.write("hosts", "192.0.2.201 edited.example\n")
    until(lambda: net.addresses("edited.example") == "192.0.2.201", "the file to be read")
    assert net.names.questions == questions


def test_hosts_that_share_a_name_in_etc_hosts_are_not_merged(net: Net) -> None:
    lines = ("127.0.0.1 localhost own", "192.0.2.5 own one", "192.0.2.6 one two # three")
    net.write("hosts", "".join(f"{line}\n" for line in lines))
    assert net.addresses("two") == "192.0.2.6"
    assert set(net.addresses("one").split()) == {"192.0.2.5", "192.0.2.6"}
    assert net.addresses("localhost") == "127.0.0.1"
    assert net.addresses("three") == ""


def test_a_changed_resolv_conf_is_read(net: Net) -> None:
    net.names.addresses[b"old.lab.example"] = net.names.addresses[b"new.lab.example"] = "192.0.2.7"
    assert net.addresses("old") == ""
    net.write("resolv.conf", OURS["resolv.conf"].replace("corp", "lab"))
    assert net.addresses("new") == "192.0.2.7"


def test_a_silent_name_server_delays_no_other_lookup(net: Net) -> None:
    net.set_addresses("192.0.2.7")
    assert net.addresses(net.host) == "192.0.2.7"
    net.names.is_silent = True
    start = time.monotonic()
    silent = [f"silent-{number}.example" for number in range(100)]
    answers = net.asking.ask(*silent, net.host, "written.example")
    assert list(answers)[:2] == [net.host, "written.example"]
    assert not any(answers[name] for name in silent)
    assert answers[net.host] == "192.0.2.7"
    assert time.monotonic() - start < 7


def many(query: bytes, answer: bytes) -> bytes:
    records = [record(A, 60, bytes([192, 0, 2, number])) for number in range(200)]
    return header(query, 0, len(records)) + question(query) + b"".join(records)


def question(query: bytes) -> bytes:
    return query[12 : query.index(b"\0", 12) + 5]


def alias(query: bytes, name: bytes, ttl: int = 60) -> bytes:
    return header(query, 0, 1) + question(query) + record(5, ttl, name)


def data(query: bytes, data: bytes) -> bytes:
    return header(query, 0, 1) + question(query) + record(A, 60, data)


HOSTILE: dict[str, Callable[[bytes, bytes], bytes]] = {
    "garbage": lambda query, answer: query[:2] + os.urandom(200),
    "nothing": lambda query, answer: b"",
    "header-only": lambda query, answer: answer[:12],
    "truncated": lambda query, answer: answer[:-2],
    "short-address": lambda query, answer: data(query, b"\x7f\0\1"),
    "long-address": lambda query, answer: data(query, bytes([192, 0, 2, 7]) * 100),
    "counts-that-lie": lambda query, answer: answer[:4] + b"\xff" * 8 + answer[12:],
    "alias-of-itself": lambda query, answer: alias(query, b"\xc0\x0c"),
    "pointer-to-itself": lambda query, answer: alias(
        query, struct.pack("!H", 0xC000 + len(header(query, 0, 1) + question(query)) + 12)
    ),
    "control-characters": lambda query, answer: alias(query, b"\6evil\n\x1b\3\xff\0z\0"),
    "another-name": lambda query, answer: answer.replace(b"another-name", b"another-nice"),
}


def test_the_resolver_survives_hostile_answers(net: Net) -> None:
    def hostile_answer(query: bytes, answer: bytes) -> bytes:
        trick = HOSTILE.get(query[13 : 13 + query[12]].decode())
        return trick(query, answer) if trick else answer

    names = [f"{trick}.example" for trick in HOSTILE]
    net.names.addresses |= {name.encode(): "192.0.2.7" for name in names}
    net.names.hostile = hostile_answer
    net.set_addresses("192.0.2.8")
    answers = net.asking.ask(*names, net.host)
    assert set(answers) == {*names, net.host}
    assert answers.pop(net.host) == "192.0.2.8"
    assert set(answers.values()) <= {"", "192.0.2.7"}
    os.kill(net.asking.resolver, 0)


def test_at_most_sixteen_addresses_are_accepted(net: Net) -> None:
    net.names.hostile = many
    assert len(net.addresses(net.host).split()) == 16


@pytest.mark.parametrize("ttl", [0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_ttl_may_have_any_value(net: Net, ttl: int) -> None:
    net.names.ttl = ttl
    net.set_addresses("192.0.2.7")
    assert net.addresses(net.host) == "192.0.2.7"
