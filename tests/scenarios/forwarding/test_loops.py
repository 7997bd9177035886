"""Services that lead to each other: nobody goes round more than once."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from tests.clients import connect_tcp, connect_unix
from tests.conftest import Start
from tests.daemons import free_ports
from tests.harness import Superd, until
from tests.namespaces import network_namespace
from tests.usage import open_descriptors

PORT = free_ports(1)[0]
NAME = f"@superd-test-{os.getpid()}"
LOOPS = {
    "tcp": (f"tcp://127.0.0.1:{PORT}", "tcp://127.0.0.1:0"),
    "unix": (f"unix://{NAME}-first", f"unix://{NAME}-second"),
    "mixed": (f"tcp://127.0.0.1:{PORT}", f"unix://{NAME}-mixed"),
    "unixgram": (f"unixgram://{NAME}-first", f"unixgram://{NAME}-second"),
}
TWO = """
[daemon]
record-log = "stderr"

[service.first]
plugin = "forward"
listen = "{first}"
options = {{ to = "{second}" }}

[service.second]
plugin = "forward"
listen = "{second}"
options = {{ to = "{first}" }}
"""


def entered(served: Superd) -> list[int]:
    return [int(served.counts(name)["accepted"]) for name in ("first", "second")]


@pytest.mark.parametrize("kind", LOOPS)
def test_who_comes_round_again_is_turned_away(start_superd: Start, kind: str) -> None:
    first, second = LOOPS[kind]
    if kind == "tcp":
        second = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    served = start_superd(TWO.format(first=first, second=second))
    before = open_descriptors(served.workers())
    with contextlib.ExitStack() as stack:
        if kind == "unixgram":
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            client.sendto(b"hello", f"\0{NAME[1:]}-first")
        elif kind == "unix":
            client = stack.enter_context(connect_unix(f"\0{NAME[1:]}-first"))
        else:
            with contextlib.suppress(ConnectionResetError):  # connect(2) may see it already
                stack.enter_context(connect_tcp(("127.0.0.1", PORT)))
        served.wait_for_log("it comes from this very service")
        until(lambda: entered(served) == [2, 1], "it to have come round once")
        assert open_descriptors(served.workers())[0] - before[0] < 8
    assert entered(served) == [2, 1]


CHAIN = """
[service.front]
plugin = "forward"
listen = "tcp://127.0.0.1:7001"
options = { to = "tcp://127.0.0.1:7002" }

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:7002"
"""


@pytest.mark.root
@pytest.mark.tool("ip")
def test_a_client_that_has_the_port_of_a_connection_elsewhere_is_served(
    start_superd: Start,
) -> None:
    """The kernel gives a port to connections to different places."""
    with network_namespace() as space, contextlib.ExitStack() as stack:
        space.sysctl("net.ipv4.ip_local_port_range=40000 40003")
        served = start_superd(CHAIN, *space.wrapper)
        stack.callback(served.stop)
        for _ in range(4):
            with space.inside():
                client = stack.enter_context(connect_tcp(("127.0.0.1", 7001)))
            client.sendall(b"x")
            assert client.recv(1) == b"x"
