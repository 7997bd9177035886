"""The PROXY header, which gives the target the client's address before its first byte."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.plugins.forward.places import Front, TcpTarget, fronts
from tests.support.clients import connect_unix
from tests.support.harness import EVENT_TIMEOUT

NAME = f"superd-test-{os.getpid()}"
SERVICES = {
    "one": 'to = "$0", proxy-protocol = "v1"\nlisten = "tcp://*:0"',
    "two": 'to = "$0", proxy-protocol = "v2"\nlisten = "tcp://*:0"',
    "unix-one": f'to = "$0", proxy-protocol = "v1"\nlisten = "unix://@{NAME}-v1"',
    "unix-two": f'to = "$0", proxy-protocol = "v2"\nlisten = "unix://@{NAME}-v2"',
    "from": 'to = "$0", bind-to = "127.0.0.99", proxy-protocol = "v1"',
}
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21"

Made = dict[str, Front[TcpTarget]]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with fronts(tmp_path_factory.mktemp("superd"), SERVICES, TcpTarget) as made:
        yield made


@contextlib.contextmanager
def client_at(front: Front[TcpTarget], host: str) -> Iterator[tuple[socket.socket, bytes]]:
    """Connect a client to one of our addresses; yield it with the expected header."""
    port = next(
        port for own, port in front.superd.addresses(front.service) if (":" in own) == (":" in host)
    )
    with socket.create_connection((host, port), EVENT_TIMEOUT) as client:
        family, (own, own_port) = client.family, client.getsockname()[:2]
        six = family == socket.AF_INET6
        ends = socket.inet_pton(family, own) + socket.inet_pton(family, host)
        body = ends + struct.pack("!HH", own_port, port)
        text = f"PROXY TCP{6 if six else 4} {own} {host} {own_port} {port}\r\n"
        binary = V2 + bytes((0x21 if six else 0x11, 0, len(body))) + body
        yield client, text.encode() if front.service == "one" else binary


BOTH = pytest.mark.parametrize("service", ["one", "two"])


@BOTH
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.3", "::1"])
def test_the_header_has_the_address_that_was_reached(front: Made, service: str, host: str) -> None:
    with client_at(front[service], host) as (client, header):
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        with front[service].targets[0].accept() as server:
            assert server.recv(len(header)) == header
            assert b"".join(iter(lambda: server.recv(100), b"")) == b"hello"


@BOTH
def test_the_header_is_sent_before_the_client_sends_anything(front: Made, service: str) -> None:
    one = front[service]
    with client_at(one, "127.0.0.1") as (client, header), one.targets[0].accept() as server:
        assert server.recv(1000) == header
        server.sendall(b"220 welcome")
        assert client.recv(100) == b"220 welcome"
        client.sendall(b"hello")
        assert server.recv(1000) == b"hello"


@BOTH
def test_the_header_is_one_segment_and_is_not_counted(front: Made, service: str) -> None:
    one = front[service]
    one.superd.wait_until_idle(service)
    before = one.superd.counts(service)["bytes-in"]
    with client_at(one, "127.0.0.1") as (client, header):
        client.sendall(bytes(100_000))
        client.shutdown(socket.SHUT_WR)
        with one.targets[0].accept() as server:
            assert server.recv(1000).startswith(header)
            while server.recv(65536):
                pass
    one.superd.wait_until_idle(service)
    assert one.superd.counts(service)["bytes-in"] == before + 100_000


def test_a_client_that_closes_immediately_has_a_header(front: Made) -> None:
    with client_at(front["two"], "127.0.0.1") as (client, header):
        client.shutdown(socket.SHUT_WR)
        with front["two"].targets[0].accept() as server:
            assert server.recv(1000) == header
            assert server.recv(1000) == b""


def test_clients_of_unix_sockets_have_no_address(front: Made) -> None:
    with connect_unix(f"\0{NAME}-v1"), front["unix-one"].targets[0].accept() as server:
        assert server.recv(1000) == b"PROXY UNKNOWN\r\n"
    with connect_unix(f"\0{NAME}-v2"), front["unix-two"].targets[0].accept() as server:
        own = b"\0" + f"{NAME}-v2".encode()
        assert server.recv(1000) == V2 + b"\x31\0\xd8" + bytes(108) + own.ljust(108, b"\0")


def test_the_header_has_the_clients_address_despite_bind_to(front: Made) -> None:
    with front["from"].connect() as client, front["from"].targets[0].accept() as server:
        assert server.getpeername()[0] == "127.0.0.99"
        host, port = client.getsockname()
        assert server.recv(1000).startswith(f"PROXY TCP4 {host} 127.0.0.1 {port} ".encode())
