"""Forwarding between address families, from a chosen address; options of the target's socket."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import Start
from tests.scenarios.forwarding.ends import Pair, Target, entry, serving
from tests.support.clients import receive_to_end, reset
from tests.support.harness import EVENT_TIMEOUT, receive_all

V4, V6 = "127.0.0.1", "::1"

# by service: the host of its target, its address, and further options
ENTRIES = {
    "four-four": (V4, "tcp://127.0.0.1:0", ""),
    "four-six": (V6, "tcp://127.0.0.1:0", ""),
    "six-four": (V4, "tcp://[::1]:0", ""),
    "six-six": (V6, "tcp://[::1]:0", ""),
    "any-four": (V4, "tcp://*:0", ""),
    "any-six": (V6, "tcp://*:0", ""),
    "mapped": ("::ffff:127.0.0.1", "tcp://127.0.0.1:0", ""),
    "from-mapped": (V6, "tcp://[::ffff:127.0.0.1]:0", ""),
    "bound": (V4, "tcp://127.0.0.1:0", 'bind-to = "127.0.0.2"'),
    "bound-six": (V6, "tcp://127.0.0.1:0", 'bind-to = "::1"'),
    "plain": (V4, "tcp://127.0.0.1:0", "\nkeepalive = false\nnodelay = false"),
}
REACHED = [(name, V4) for name in ENTRIES if not name.startswith("six")]
REACHED += [(name, V6) for name in ENTRIES if name.startswith(("six", "any"))]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pair]]:
    with contextlib.ExitStack() as stack:
        targets = {name: Target(host=host) for name, (host, _, _) in ENTRIES.items()}
        toml = ""
        for name, (_, listen, more) in ENTRIES.items():
            stack.callback(targets[name].close)
            toml += entry(name, targets[name], listen, more)
        superd = stack.enter_context(serving(tmp_path_factory.mktemp("superd"), toml))
        yield {name: Pair(superd, name, target) for name, target in targets.items()}


def connect(pair: Pair, host: str) -> socket.socket:
    """Connect to a service by one family; with `*` each family has a socket and a port."""
    ports = [
        port for at, port in pair.superd.addresses(pair.service) if (":" in at) == (":" in host)
    ]
    return socket.create_connection((host, ports[0]), timeout=EVENT_TIMEOUT)


@pytest.mark.parametrize(("name", "host"), REACHED)
def test_each_family_reaches_the_other(pairs: dict[str, Pair], name: str, host: str) -> None:
    pair = pairs[name]
    with connect(pair, host) as client, pair.target.accept() as server:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(server) == b"question"
        server.sendall(b"answer")
        reset(server)
        assert receive_to_end(client) == (b"answer", "reset")


def test_the_target_sees_the_address_of_bind_to(pairs: dict[str, Pair]) -> None:
    for name, expected in (("bound", "127.0.0.2"), ("bound-six", "::1"), ("four-four", V4)):
        with pairs[name].open() as (_, server):
            assert server.getpeername()[0] == expected


def test_an_address_of_another_family_is_refused(start_superd: Start) -> None:
    toml = entry("web", "tcp://127.0.0.1:9", more='bind-to = "::1"')
    with pytest.raises(AssertionError, match="::1 is of another family"):
        start_superd(toml)


# The socket to the target


def as_seen_by_ss(pair: Pair) -> str:
    """Return what ss(8) prints of the connection to the target, at superd's end."""
    with pair.open() as (_, server):
        peer = server.getpeername()[1]
        command = ["ss", "-tnoiH", "state", "established", "sport", "=", f":{peer}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.tool("ss")
def test_keepalive_is_on_unless_disabled(pairs: dict[str, Pair]) -> None:
    assert "timer:(keepalive," in as_seen_by_ss(pairs["four-four"])
    assert "timer:(keepalive," not in as_seen_by_ss(pairs["plain"])


@pytest.mark.tool("strace")
@pytest.mark.root
@pytest.mark.parametrize(("name", "number"), [("four-four", 1), ("plain", 0)])
def test_nodelay_is_on_unless_disabled(pairs: dict[str, Pair], name: str, number: int) -> None:
    pair = pairs[name]
    (worker,) = pair.superd.workers()
    command = ["strace", "-p", str(worker), "-e", "trace=setsockopt"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        assert "attached" in tracer.stderr.readline()
        with pair.open():
            pass
        pair.superd.wait_until_idle(name)
        tracer.send_signal(signal.SIGINT)
        traced = tracer.stderr.read()
    assert len(re.findall("TCP_NODELAY, \\[1\\]", traced)) == number
