"""message: whoever comes is told what the one before had to say."""

from __future__ import annotations

import socket

import pytest

from tests.conftest import Start
from tests.support.clients import ask_unixgram, ask_unixpacket, connect_unix, receive_to_end
from tests.support.harness import Superd, ask_udp, exchange, receive_all

TOML = """
[service.message]
plugin = "message"
listen = [
    "tcp://127.0.0.1:0",
    "udp://127.0.0.1:0",
    "unix://{directory}/stream",
    "unixpacket://{directory}/packet",
    "unixgram://{directory}/datagram",
]
"""


def tell(served: Superd, message: bytes) -> bytes:
    return exchange(served.connect("message"), message)


def tell_udp(served: Superd, message: bytes) -> bytes:
    """Ask with a datagram of full length: blanks around a message are not part of it."""
    return ask_udp(served.address("message", "udp"), message.ljust(512))


def test_it_begins_with_what_the_entry_says(start_superd: Start) -> None:
    served = start_superd(
        """
        [service.message]
        plugin = "message"
        listen = "tcp://127.0.0.1:0"
        options = { first = "welcome" }

        [service.plain]
        plugin = "message"
        listen = "tcp://127.0.0.1:0"
        """
    )
    assert exchange(served.connect("message"), b"hello\n") == b"welcome\r\n"
    assert exchange(served.connect("plain"), b"hello\n") == b"there is no message yet\r\n"


def test_a_message_is_remembered_over_all_transports(served: Superd) -> None:
    tell(served, b"by tcp\r\n")
    assert tell_udp(served, b"by udp") == b"[127.0.0.1] by tcp"
    path = served.directory
    with connect_unix(path / "stream") as client:
        assert exchange(client, b"by unix\n") == b"[127.0.0.1] by udp\r\n"
    assert ask_unixpacket(path / "packet", b"by packet\n") == [b"[localhost] by unix\r\n"]
    assert ask_unixgram(path / "datagram", b"by unixgram") == b"[localhost] by packet"
    assert tell(served, b"again by tcp\n") == b"[localhost] by unixgram\r\n"


def test_the_answer_comes_with_the_line_end_and_then_the_end(served: Superd) -> None:
    with served.connect("message") as client:
        client.send(b"a line in ")
        client.send(b"two parts\n")
        answer, how = receive_to_end(client)
    assert answer.endswith(b"\r\n")
    assert how == "fin"
    assert tell(served, b"next\n") == b"[127.0.0.1] a line in two parts\r\n"


def test_a_message_may_end_with_the_connection_instead_of_a_line(served: Superd) -> None:
    tell(served, b"no line end")
    assert tell(served, b"next") == b"[127.0.0.1] no line end\r\n"


def test_a_client_that_says_nothing_hears_nothing_and_changes_nothing(served: Superd) -> None:
    tell(served, b"kept\n")
    assert tell(served, b"") == b""
    assert tell(served, b"next\n") == b"[127.0.0.1] kept\r\n"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"\x1b[2J\x07bell", "?[2J?bell"),
        (b"null\0 and \x7f", "null? and ?"),
        (b"broken \xff\xfe", "broken \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"),
        ("right to left \N{RIGHT-TO-LEFT OVERRIDE}".encode(), "right to left ?"),
        ("lines\u0085and\u2028more".encode(), "lines?and?more"),
        ("gr\u00fc\u00dfe".encode(), "gr\u00fc\u00dfe"),
    ],
)
def test_control_characters_are_harmless(served: Superd, message: bytes, told: str) -> None:
    tell(served, message + b"\n")
    assert tell_udp(served, b"next") == f"[127.0.0.1] {told}".encode()


def test_a_message_that_is_too_long_is_refused_and_not_remembered(served: Superd) -> None:
    tell(served, b"kept\n")
    for message in (b"x" * 513 + b"\n", b"y" * 100_000):
        with served.connect("message") as client:
            client.sendall(message)
            assert receive_to_end(client) == (b"a message has at most 512 bytes\r\n", "fin")
    longest = b"z" * 511 + b"\n"
    assert tell(served, longest) == b"[127.0.0.1] kept\r\n"
    assert tell(served, b"next\n") == b"[127.0.0.1] " + b"z" * 511 + b"\r\n"


def test_a_datagram_never_gets_more_than_it_brought(served: Superd) -> None:
    tell(served, b"a rather long message for so short a question\n")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(served.address("message", "udp"))
        client.send(b"?")
        assert tell(served, b"next\n") in (
            b"[127.0.0.1] ?\r\n",
            b"[127.0.0.1] a rather long message for so short a question\r\n",
        )
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)


def test_clients_do_not_wait_for_one_that_is_silent(served: Superd) -> None:
    with served.connect("message") as silent:
        tell(served, b"one\n")
        assert tell(served, b"two\n") == b"[127.0.0.1] one\r\n"
        silent.sendall(b"three\n")
        assert receive_all(silent) == b"[127.0.0.1] two\r\n"
