"""discard (RFC 863): reads everything, sends nothing, closes at the end of input."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.clients import ask_unixpacket, connect_unix, receive_to_end
from tests.support.harness import Superd, exchange, until

TOML = """
[service.discard]
plugin = "discard"
listen = [
    "tcp://127.0.0.1:0",
    "udp://127.0.0.1:0",
    "unix://{directory}/stream",
    "unixpacket://{directory}/packet",
    "unixgram://{directory}/datagram",
]
"""


def test_input_of_any_length_is_read_and_not_answered(served: Superd) -> None:
    assert exchange(served.connect("discard"), b"") == b""
    assert exchange(served.connect("discard"), bytes(8 << 20)) == b""
    assert exchange(connect_unix(served.directory / "stream"), bytes(1 << 20)) == b""
    assert ask_unixpacket(served.directory / "packet", b"a", b"bc") == []


def test_the_connection_ends_with_a_fin_with_much_input_in_transit(served: Superd) -> None:
    with served.connect("discard") as client:
        client.sendall(bytes(1 << 20))
        client.shutdown(socket.SHUT_WR)
        assert receive_to_end(client) == (b"", "fin")


@pytest.mark.parametrize("transport", ["udp", "unixgram"])
def test_no_datagram_is_answered(served: Superd, transport: str) -> None:
    before = served.counts("discard")
    path = Path(served.directory, "datagram")
    if transport == "udp":
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.connect(served.address("discard", "udp"))
    else:
        client = connect_unix(path, socket.SOCK_DGRAM)
    with client:
        for size in (0, 1, 512, 1400):
            client.send(bytes(size))
        until(lambda: served.counts("discard")["datagrams"] == before["datagrams"] + 4, "reading")
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
    assert served.counts("discard")["answers"] == 0
