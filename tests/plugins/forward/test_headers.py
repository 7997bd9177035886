"""Connections whose target is told who the client is, in front of its first byte."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.plugins.forward.places import Front, Place, fronts
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

Made = dict[str, Front[Place]]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with fronts(tmp_path_factory.mktemp("superd"), SERVICES, Place) as made:
        yield made


@contextlib.contextmanager
def client_at(front: Front[Place], host: str) -> Iterator[tuple[socket.socket, bytes]]:
    """A client that has reached one of our addresses; with the header that it is to have."""
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
def test_the_target_is_told_which_address_was_reached(front: Made, service: str, host: str) -> None:
    with client_at(front[service], host) as (client, header):
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        with front[service].places[0].accept() as taken:
            assert taken.recv(len(header)) == header
            assert b"".join(iter(lambda: taken.recv(100), b"")) == b"hello"


@BOTH
def test_a_server_that_speaks_first_has_the_header_before_the_client_says_a_word(
    front: Made, service: str
) -> None:
    one = front[service]
    with client_at(one, "127.0.0.1") as (client, header), one.places[0].accept() as taken:
        assert taken.recv(1000) == header
        taken.sendall(b"220 welcome")
        assert client.recv(100) == b"220 welcome"
        client.sendall(b"hello")
        assert taken.recv(1000) == b"hello"


@BOTH
def test_the_header_is_one_piece_and_counts_for_nobody(front: Made, service: str) -> None:
    one = front[service]
    one.superd.wait_until_idle(service)
    before = one.superd.counts(service)["bytes-in"]
    with client_at(one, "127.0.0.1") as (client, header):
        client.sendall(bytes(100_000))
        client.shutdown(socket.SHUT_WR)
        with one.places[0].accept() as taken:
            assert taken.recv(1000).startswith(header)
            while taken.recv(65536):
                pass
    one.superd.wait_until_idle(service)
    assert one.superd.counts(service)["bytes-in"] == before + 100_000


def test_a_client_that_leaves_at_once_is_told_of_too(front: Made) -> None:
    with client_at(front["two"], "127.0.0.1") as (client, header):
        client.shutdown(socket.SHUT_WR)
        with front["two"].places[0].accept() as taken:
            assert taken.recv(1000) == header
            assert taken.recv(1000) == b""


def test_clients_of_unix_sockets_have_no_address(front: Made) -> None:
    with connect_unix(f"\0{NAME}-v1"), front["unix-one"].places[0].accept() as taken:
        assert taken.recv(1000) == b"PROXY UNKNOWN\r\n"
    with connect_unix(f"\0{NAME}-v2"), front["unix-two"].places[0].accept() as taken:
        own = b"\0" + f"{NAME}-v2".encode()
        assert taken.recv(1000) == V2 + b"\x31\0\xd8" + bytes(108) + own.ljust(108, b"\0")


def test_what_we_bind_to_is_not_what_is_told(front: Made) -> None:
    with front["from"].connect() as client, front["from"].places[0].accept() as taken:
        assert taken.getpeername()[0] == "127.0.0.99"
        host, port = client.getsockname()
        assert taken.recv(1000).startswith(f"PROXY TCP4 {host} 127.0.0.1 {port} ".encode())
