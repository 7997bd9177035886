"""`superd whoami`: names and addresses of this machine, and the one that a peer sees."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys

import pytest

from superd.client.interfaces import interfaces
from tests.client.peers import peer
from tests.support.harness import EVENT_TIMEOUT, superd
from tests.support.namespaces import network_namespace


def test_host_and_interfaces() -> None:
    done = superd("whoami")
    assert (done.returncode, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    assert re.fullmatch(rf"host +{re.escape(socket.gethostname())}( \(\S+\))?", first)
    assert any(re.match(r"lo +127\.0\.0\.1/8", line) for line in rest)


@pytest.mark.tool("ip")
def test_the_addresses_are_those_of_the_ip_command() -> None:
    shown = subprocess.run(["ip", "-json", "address"], capture_output=True, check=True).stdout
    printed = {
        (link["ifname"], f"{one['local']}/{one['prefixlen']}")
        for link in json.loads(shown)
        for one in link["addr_info"]
    }
    assert {(name, one) for name, found in interfaces().items() for one in found} == printed


@pytest.mark.root
@pytest.mark.tool("ip")
def test_many_addresses_of_one_interface() -> None:
    with network_namespace() as space:
        wanted = [f"10.1.{number // 250}.{number % 250 + 1}/24" for number in range(600)]
        batch = "".join(f"address add {one} dev lo\n" for one in wanted)
        subprocess.run(["ip", "-n", space.name, "-batch", "-"], input=batch, text=True, check=True)
        program = (*space.wrapper, sys.executable, "-m", "superd", "whoami", "--json")
        shown = subprocess.run(program, capture_output=True, check=True).stdout
    assert set(wanted) <= set(json.loads(shown)["interfaces"]["lo"])


def test_as_json_with_the_own_end_of_a_connection() -> None:
    with peer(lambda client: client.getpeername()) as (at, served):
        found = json.loads(superd("whoami", "--json", f"tcp://{at}").stdout)
        seen = found["seen"]
        assert (seen["address"], seen["port"]) == served.result(EVENT_TIMEOUT)
    assert found["host"] == socket.gethostname()
    assert "127.0.0.1/8" in found["interfaces"]["lo"]


def test_the_own_address_is_found_without_a_connection() -> None:
    printed = superd("whoami", "127.0.0.1").stdout.splitlines()[-1]
    assert re.fullmatch(r"127\.0\.0\.1 sees 127\.0\.0\.1:\d+, unless .*", printed)


def test_an_unreachable_address_is_an_error() -> None:
    done = superd("whoami", "unix:///none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("superd: cannot connect to unix:///none: ")
