"""A range of ports is forwarded port by port to a range of as many ports."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.conftest import Start
from tests.support.harness import EVENT_TIMEOUT, Superd, until
from tests.support.ports import free_ports

NUMBER = 3


@contextlib.contextmanager
def answering(ports: list[int]) -> Iterator[list[socket.socket]]:
    """Listen on each port by tcp and by udp."""
    with contextlib.ExitStack() as stack:
        found = []
        for port in ports:
            found.append(stack.enter_context(socket.create_server(("127.0.0.1", port))))
            datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            datagrams.bind(("127.0.0.1", port))
            found.append(datagrams)
        for one in found:
            one.settimeout(EVENT_TIMEOUT)
        yield found


def adjacent(number: int) -> list[int]:
    """Return free ports that follow each other."""
    for first in free_ports(20):
        ports = [*range(first, first + number)]
        with contextlib.suppress(OSError), answering(ports):
            return ports
    raise AssertionError("no free ports follow each other")


def forwarding(start: Start, listen: list[int], to: str) -> Superd:
    ports = f"{listen[0]}-{listen[-1]}"
    return start(
        f"""
        [service.game]
        plugin = "forward"
        listen = ["tcp://127.0.0.1:{ports}", "udp://127.0.0.1:{ports}"]
        options = {{ to = {to} }}
        """
    )


def test_each_port_is_forwarded_to_the_port_at_its_position(start_superd: Start) -> None:
    listen, to = adjacent(NUMBER), adjacent(NUMBER)
    with answering(to) as servers:
        served = forwarding(start_superd, listen, f'"127.0.0.1:{to[0]}-{to[-1]}"')
        for number, port in enumerate(listen):
            server, datagrams = servers[2 * number : 2 * number + 2]
            with socket.create_connection(("127.0.0.1", port), EVENT_TIMEOUT) as client:
                client.sendall(b"hello")
                with server.accept()[0] as accepted:
                    assert accepted.recv(5) == b"hello"
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(EVENT_TIMEOUT)
                client.sendto(b"ping", ("127.0.0.1", port))
                data, address = datagrams.recvfrom(100)
                datagrams.sendto(data + b"pong", address)
                assert client.recv(100) == b"pingpong"

        def rows() -> list[str]:
            return [row["target"] for row in served.answer()["services"][0]["rows"]]

        targets = [f"{kind}://127.0.0.1:{port}" for kind in ("tcp", "udp") for port in to]
        until(lambda: rows() == targets, "a row for each port")


def test_a_target_with_one_port_serves_the_whole_range_beside_one_with_a_range(
    start_superd: Start,
) -> None:
    listen, to = adjacent(NUMBER), adjacent(NUMBER)
    with answering(to[:1]) as (one, _):
        options = f'["127.0.0.1:{to[0]}-{to[-1]}", "127.0.0.1:{to[0]}"], balance = "first"'
        forwarding(start_superd, listen, options)
        for port in listen:  # that of the range refuses, but for the first port
            with socket.create_connection(("127.0.0.1", port), EVENT_TIMEOUT) as client:
                client.sendall(b"x")
                with one.accept()[0] as accepted:
                    assert accepted.recv(1) == b"x"


@pytest.mark.parametrize(
    ("listen", "to", "mistake"),
    [
        ('"tcp://127.0.0.1:7001-7003"', "127.0.0.1:8001-8002", "has 2 ports, but listen has 3 (70"),
        ('"tcp://127.0.0.1:7001"', "127.0.0.1:8001-8002", "has 2 ports, but listen has 1 (7001)"),
        (
            '"tcp://127.0.0.1:7001-7002"',
            "127.0.0.1:8002-8001",
            "expected a range of ports from low",
        ),
        ('"tcp://127.0.0.1:7001-7002"', "127.0.0.1:7002-7003", "is an address of the service"),
    ],
)
def test_a_range_that_does_not_fit_is_reported_at_its_option(
    start_superd: Start, listen: str, to: str, mistake: str
) -> None:
    served = start_superd('[service.echo]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n')
    entry = f'[service.x]\nplugin = "forward"\nlisten = {listen}\noptions = {{ to = "{to}" }}\n'
    served.file.write_text(served.file.read_text() + entry)
    done = served.run("check")
    assert done.returncode == 78
    assert "service.x.options.to" in done.stderr
    assert mistake in done.stderr
