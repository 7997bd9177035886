"""`superd connect` at a terminal: lines are edited before they are sent."""

from __future__ import annotations

import contextlib
import os
import pty
import queue
import select
import signal
import socket
import subprocess
import termios
import threading
from collections.abc import Iterator

import pytest

from tests.client.peers import peer
from tests.support.harness import EVENT_TIMEOUT, command, receive_all, until

pytestmark = pytest.mark.terminal

BACK = b"\x02"  # Ctrl-B of readline
EARLIER = b"\x1b[A"
END = b"\x04"


class Terminal:
    """A pseudo-terminal and the client that runs on it."""

    def __init__(self, *arguments: str) -> None:
        self.keyboard, self.line = pty.openpty()
        self.before = termios.tcgetattr(self.line)
        self.process = subprocess.Popen(
            command("connect", *arguments),
            stdin=self.line, stdout=self.line, stderr=self.line,
            env={**os.environ, "TERM": "xterm"}, start_new_session=True,
        )  # fmt: skip

    def wait_for_editor(self) -> None:
        """Wait until readline has set up the terminal."""
        until(lambda: not termios.tcgetattr(self.line)[3] & termios.ICANON, "readline")

    def type(self, keys: bytes) -> None:
        os.write(self.keyboard, keys)

    def shows(self, text: bytes) -> bytes:
        """Wait until a text is on the screen; return everything new since the last call."""
        seen = b""
        while text not in seen:
            assert select.select([self.keyboard], [], [], EVENT_TIMEOUT)[0], seen
            seen += os.read(self.keyboard, 1000)
        return seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.keyboard)
        os.close(self.line)


@contextlib.contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    one = Terminal(*arguments)
    try:
        yield one
    finally:
        one.close()


def test_a_line_is_edited_before_it_is_sent() -> None:
    lines: queue.Queue[bytes] = queue.Queue()

    def handle(client: socket.socket) -> None:
        while data := client.recv(100):
            lines.put(data)

    with peer(handle) as (address, served), terminal("--line", address) as one:
        for keys, line in ((b"helo" + BACK + b"l\n", b"hello\n"), (EARLIER + b"!\n", b"hello!\n")):
            one.wait_for_editor()  # between two lines, the terminal would take keys in its own way
            one.type(keys)
            assert lines.get(timeout=EVENT_TIMEOUT) == line
        one.wait_for_editor()
        one.type(END)
        served.result(EVENT_TIMEOUT)
        assert one.process.wait(EVENT_TIMEOUT) == 0
        assert termios.tcgetattr(one.line) == one.before


@pytest.mark.parametrize("arguments", [[], ["--line"]])
def test_the_client_exits_when_the_peer_ends(arguments: list[str]) -> None:
    def handle(client: socket.socket) -> None:
        client.sendall(b"good bye\n")

    with peer(handle) as (address, _), terminal(*arguments, address) as one:
        assert one.process.wait(EVENT_TIMEOUT) == 0
        one.shows(b"good bye")
        assert termios.tcgetattr(one.line) == one.before


def test_data_of_the_peer_is_shown_while_a_line_is_typed() -> None:
    asked = threading.Event()

    def handle(client: socket.socket) -> bytes:
        assert asked.wait(EVENT_TIMEOUT)
        client.sendall(b"news\n")
        return client.recv(100)

    with peer(handle) as (address, served), terminal("--line", address) as one:
        one.wait_for_editor()
        one.type(b"half")
        one.shows(b"half")
        asked.set()
        one.shows(b"news")
        one.type(b" a line\n")
        assert served.result(EVENT_TIMEOUT) == b"half a line\n"


def test_without_editing_the_terminal_settings_stay() -> None:
    with peer(lambda client: client.recv(100)) as (address, served), terminal(address) as one:
        one.type(b"plain\n")
        assert served.result(EVENT_TIMEOUT) == b"plain\n"
        assert termios.tcgetattr(one.line) == one.before
        assert one.process.wait(EVENT_TIMEOUT) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_restores_the_terminal(number: signal.Signals) -> None:
    with peer(receive_all) as (address, _), terminal("--line", address) as one:
        one.wait_for_editor()
        one.process.send_signal(number)
        assert one.process.wait(EVENT_TIMEOUT) == 128 + number
        assert termios.tcgetattr(one.line) == one.before
