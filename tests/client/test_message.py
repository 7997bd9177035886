"""`superd message`: sends a text and prints the answer without harm to the terminal."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import threading

import pytest

from tests.client.peers import peer
from tests.support.harness import EVENT_TIMEOUT, Superd, command, receive_all, superd
from tests.support.ports import free_port

TOML = """
[service.message]
plugin = "message"
listen = [
    "tcp://127.0.0.1:0",
    "unix://{directory}/stream",
    "unixgram://{directory}/datagram",
    "unixpacket://{directory}/packet",
]

[service.udp]
plugin = "message"
listen = "udp://127.0.0.1:0"
amplify = true
"""


def say(address: str, text: str) -> str:
    done = superd("message", address, text)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_every_transport(served: Superd) -> None:
    host, port = served.address("message")
    assert say(f"{host}:{port}", "one") == "there is no message yet\n"
    assert say(f"unix://{served.directory}/stream", "two") == "[127.0.0.1] one\n"
    assert say(f"unixgram://{served.directory}/datagram", "three") == "[localhost] two"
    assert (
        say(f"unixpacket://{served.directory}/packet", "gr\u00fc\u00dfe") == "[localhost] three\n"
    )
    assert say(f"tcp://{host}:{port}", "five") == "[localhost] gr\u00fc\u00dfe\n"


def test_a_datagram_and_its_answer(served: Superd) -> None:
    host, port = served.address("udp", "udp")
    say(f"udp://{host}:{port}", "first")
    assert say(f"udp://{host}:{port}", "second") == "[127.0.0.1] first"


def test_a_text_from_standard_input_is_sent_unchanged() -> None:
    with peer(receive_all_and_answer) as (at, served):
        done = subprocess.run(
            command("message", at, "-"), input=b"\xff no line", capture_output=True, check=True
        )
        assert served.result(EVENT_TIMEOUT) == b"\xff no line"
    assert done.stdout == b"\x1b[2J\xffraw"


def receive_all_and_answer(client: socket.socket) -> bytes:
    data = receive_all(client)
    client.sendall(b"\x1b[2J\xffraw")
    return data


@pytest.mark.terminal
def test_control_characters_of_an_answer_are_escaped_at_a_terminal() -> None:
    keyboard, line = pty.openpty()
    try:
        with peer(receive_all_and_answer) as (at, served):
            subprocess.run(command("message", at, "x"), stdout=line, check=True)
            assert served.result(EVENT_TIMEOUT) == b"x\n"
        assert os.read(keyboard, 100) == b"\\x1b[2J\\xffraw\r\n"
    finally:
        os.close(keyboard)
        os.close(line)


def test_no_answer_is_an_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        at = f"udp://127.0.0.1:{silent.getsockname()[1]}"
        done = superd("message", "--timeout", "200ms", at, "hello")
        assert silent.recv(100) == b"hello"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"superd: no answer from {at} in 0.2 s\n"


def test_an_answer_without_an_end_is_printed_and_an_error() -> None:
    done = threading.Event()

    def handle(client: socket.socket) -> None:
        client.sendall(b"so far")
        assert done.wait(EVENT_TIMEOUT)

    with peer(handle) as (at, _):
        ended = superd("message", "--timeout", "300ms", at, "hello")
        done.set()
    assert (ended.returncode, ended.stdout) == (1, "so far")
    assert ended.stderr == f"superd: no end of the answer from {at} in 0.3 s\n"


def test_a_close_without_an_answer_is_an_error() -> None:
    with peer(receive_all) as (at, _):
        done = superd("message", at, "hello")
    assert (done.returncode, done.stderr) == (1, f"superd: {at} closed without an answer\n")


def test_a_refusal_is_an_error() -> None:
    for at in (f"udp://127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"):
        done = superd("message", at, "hello")
        assert done.returncode == 1
        assert done.stderr == f"superd: cannot connect to {at}: Connection refused\n"


def test_a_datagram_that_is_too_long_is_an_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        at = f"udp://127.0.0.1:{server.getsockname()[1]}"
        done = subprocess.run(
            command("message", at, "-"), input=bytes(70_000), capture_output=True, check=False
        )
    assert done.returncode == 1
    printed = f"cannot send a datagram of 70000 bytes to {at}: Message too long"
    assert done.stderr.decode() == f"superd: {printed}\n"
