"""message: each client gets the message of the client before it."""

from __future__ import annotations

import pytest

from tests.conftest import Start
from tests.support.clients import ask_unixgram, ask_unixpacket, connect_unix, receive_to_end
from tests.support.harness import Superd, ask_udp, exchange, receive_all
from tests.support.strangers import stranger

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


def send(served: Superd, message: bytes) -> bytes:
    return exchange(served.connect("message"), message)


def send_udp(served: Superd, message: bytes) -> bytes:
    """Send a datagram of full length; blanks around a message are stripped."""
    return ask_udp(served.address("message", "udp"), message.ljust(512))


def test_the_first_message_is_that_of_the_entry(start_superd: Start) -> None:
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


def test_a_message_is_shared_by_all_transports(served: Superd) -> None:
    send(served, b"by tcp\r\n")
    assert send_udp(served, b"by udp") == b"[127.0.0.1] by tcp"
    path = served.directory
    with connect_unix(path / "stream") as client:
        assert exchange(client, b"by unix\n") == b"[127.0.0.1] by udp\r\n"
    assert ask_unixpacket(path / "packet", b"by packet\n") == [b"[localhost] by unix\r\n"]
    assert ask_unixgram(path / "datagram", b"by unixgram") == b"[localhost] by packet"
    assert send(served, b"again by tcp\n") == b"[localhost] by unixgram\r\n"


def test_the_answer_follows_the_line_end_and_ends_the_connection(served: Superd) -> None:
    with served.connect("message") as client:
        client.send(b"a line in ")
        client.send(b"two parts\n")
        answer, how = receive_to_end(client)
    assert answer.endswith(b"\r\n")
    assert how == "fin"
    assert send(served, b"next\n") == b"[127.0.0.1] a line in two parts\r\n"


def test_a_message_can_end_with_the_end_of_input(served: Superd) -> None:
    send(served, b"no line end")
    assert send(served, b"next") == b"[127.0.0.1] no line end\r\n"


def test_a_silent_client_gets_no_answer_and_changes_nothing(served: Superd) -> None:
    send(served, b"kept\n")
    assert send(served, b"") == b""
    assert send(served, b"next\n") == b"[127.0.0.1] kept\r\n"


@pytest.mark.parametrize(
    ("message", "stored"),
    [
        (b"\x1b[2J\x07bell", "?[2J?bell"),
        (b"null\0 and \x7f", "null? and ?"),
        (b"broken \xff\xfe", "broken \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"),
        ("right to left \N{RIGHT-TO-LEFT OVERRIDE}".encode(), "right to left ?"),
        ("lines\u0085and\u2028more".encode(), "lines?and?more"),
        ("gr\u00fc\u00dfe".encode(), "gr\u00fc\u00dfe"),
    ],
)
def test_control_characters_are_replaced(served: Superd, message: bytes, stored: str) -> None:
    send(served, message + b"\n")
    assert send_udp(served, b"next") == f"[127.0.0.1] {stored}".encode()


def test_a_message_that_is_too_long_is_refused_and_not_kept(served: Superd) -> None:
    send(served, b"kept\n")
    for message in (b"x" * 513 + b"\n", b"y" * 100_000):
        with served.connect("message") as client:
            client.sendall(message)
            assert receive_to_end(client) == (b"a message has at most 512 bytes\r\n", "fin")
    longest = b"z" * 511 + b"\n"
    assert send(served, longest) == b"[127.0.0.1] kept\r\n"
    assert send(served, b"next\n") == b"[127.0.0.1] " + b"z" * 511 + b"\r\n"


@pytest.mark.root
@pytest.mark.tool("ip")
def test_an_answer_is_no_longer_than_its_datagram(start_superd: Start) -> None:
    with stranger(start_superd, "message") as (_, client):
        client.send(b"a rather long message for so short a question")
        assert client.recv(1024) == b"there is no message yet"
        client.send(b"?" * 21)
        assert client.recv(1024) == b"[192.0.2.1] a rather "


def test_a_client_of_the_machine_itself_gets_the_whole_answer(served: Superd) -> None:
    send(served, b"a rather long message for so short a question\n")
    answer = ask_udp(served.address("message", "udp"), b"?")
    assert answer == b"[127.0.0.1] a rather long message for so short a question"


def test_a_silent_client_blocks_no_other(served: Superd) -> None:
    with served.connect("message") as silent:
        send(served, b"one\n")
        assert send(served, b"two\n") == b"[127.0.0.1] one\r\n"
        silent.sendall(b"three\n")
        assert receive_all(silent) == b"[127.0.0.1] two\r\n"
