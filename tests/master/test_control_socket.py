"""The control socket: it sends complete answers, and no client of it stops the master."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from superd.cli.daemon import ControlConnection
from superd.errors import NotPermitted, SuperdError
from superd.listen.failures import CannotListen
from superd.master.control_socket import (
    MAX_CLIENTS,
    MAX_REQUEST_BYTES,
    ControlSocket,
    Later,
    control_listener,
    line_of,
)
from superd.process.isolated import run_isolated
from tests.support.harness import EVENT_TIMEOUT, until


def ask(path: Path, request: str, **arguments: object) -> Any:
    """Send one request on a connection of its own."""
    with ControlConnection(path) as connection:
        return connection.ask(request, **arguments)


class Pending:
    """An answer that is never known: `reply_now` ends it."""

    def begin(self, reply: Callable[[bytes], None]) -> None:
        self.reply = reply

    def reply_now(self) -> None:
        self.reply(line_of("given up"))


class Answering:
    """A control socket, and a loop that serves nothing else."""

    def __init__(self, path: Path, answer: Any) -> None:
        self.path = path
        self.text = answer
        self.selector = selectors.DefaultSelector()
        self.control = ControlSocket(control_listener(path), self.selector, self.answer)
        self.stop, end = socket.socketpair()
        self.selector.register(end, selectors.EVENT_READ, None)
        self.end = end
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while True:
            for key, _ in self.selector.select(0.1):
                if key.fileobj is self.end:
                    return
                key.data()
            for client in self.control.clients:
                client.since -= 1.0 if client.later else 0.0  # time runs faster here
            self.control.check()

    def answer(self, line: bytes) -> bytes | Later:
        return Pending() if b"never" in line else line_of([line.decode(), self.text])

    def close(self) -> None:
        self.stop.close()
        self.thread.join(EVENT_TIMEOUT)
        self.control.close()
        self.end.close()
        self.selector.close()

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(EVENT_TIMEOUT)
        client.connect(str(self.path))
        return client


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Answering]:
    one = Answering(tmp_path / "control", "x" * 10_000_000)
    yield one
    one.close()


def repeated(answering: Answering, word: str) -> Any:
    """Return the request that an answer repeats."""
    return json.loads(ask(answering.path, word)[0])["request"]


def test_an_answer_of_ten_megabytes_arrives_whole(answering: Answering) -> None:
    request, text = ask(answering.path, "status", of="all")
    assert (json.loads(request), text) == ({"request": "status", "of": "all"}, "x" * 10_000_000)


def test_several_requests_of_one_connection_are_answered_in_order(tmp_path: Path) -> None:
    one = Answering(tmp_path / "control", "")
    with contextlib.closing(one), ControlConnection(one.path) as connection:
        assert json.loads(connection.ask("status")[0]) == {"request": "status"}
        assert json.loads(connection.ask("bans")[0]) == {"request": "bans"}
    with contextlib.closing(Answering(tmp_path / "control", "")) as one, one.client() as client:
        client.sendall(b"one\ntwo\nnever\nthr")
        with client.makefile() as answers:
            read = [json.loads(answers.readline()) for _ in range(3)]
            client.sendall(b"ee\n")
            read.append(json.loads(answers.readline()))
    assert read == [["one", ""], ["two", ""], "given up", ["three", ""]]


def test_a_request_may_arrive_byte_by_byte(answering: Answering) -> None:
    answering.text = ""
    with answering.client() as client, client.makefile() as answers:
        for byte in b"status\n":
            client.sendall(bytes([byte]))
        assert json.loads(answers.readline()) == ["status", ""]


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_request_that_is_too_long_is_refused_and_its_client_dropped(
    answering: Answering, end: str
) -> None:
    with answering.client() as client:
        client.sendall(b"x" * (MAX_REQUEST_BYTES + 1) + end.encode())
        with client.makefile() as answers:
            answer = json.loads(answers.readline())
            assert answer == {"error": f"expected a request of at most {MAX_REQUEST_BYTES} bytes"}
            assert answers.read() == ""


def test_a_pending_answer_does_not_delay_other_clients(answering: Answering) -> None:
    with answering.client() as client:
        client.sendall(b"never\n")
        assert repeated(answering, "status") == "status"
        with client.makefile() as answers:
            assert json.loads(answers.readline()) == "given up"


def test_a_client_that_disconnects_before_its_answer_is_dropped(answering: Answering) -> None:
    for _ in range(MAX_CLIENTS):
        with answering.client() as client:
            client.sendall(b"never\n")
    until(lambda: isinstance(ask(answering.path, "status"), list), "a free slot")


def test_only_the_owner_may_use_the_socket_and_the_master_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "control"
    one = Answering(path, None)
    assert path.stat().st_mode & 0o777 == 0o600
    one.close()
    assert not path.exists()


def test_clients_that_stall_disconnect_or_send_garbage_do_not_affect_others(
    answering: Answering,
) -> None:
    silent = [answering.client() for _ in range(5)]
    for request in (b"\x00\xff", b"x" * 10_000, b"\n", b"status\n", b"status\n" * 500):
        with answering.client() as client:
            client.sendall(request)  # and disconnect before the answer is read
    unread = answering.client()
    unread.sendall(b"status\n")  # and never read the answer
    for _ in range(3):
        assert repeated(answering, "status") == "status"
    for client in (*silent, unread):
        client.close()


def test_clients_beyond_the_limit_are_refused(answering: Answering) -> None:
    silent = [answering.client() for _ in range(MAX_CLIENTS)]
    assert "clients are connected already" in ask(answering.path, "status")["error"]
    for client in silent:
        client.close()
    until(lambda: isinstance(ask(answering.path, "status"), list), "a free slot")


def test_a_request_of_a_client_dropped_in_the_same_turn_is_ignored(tmp_path: Path) -> None:
    selector = selectors.DefaultSelector()
    control = ControlSocket(control_listener(tmp_path / "control"), selector, line_of)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "control"))
        control.accept()
        client.sendall(b"status\n")
        (key,) = [key for key, _ in selector.select(0) if key.data != control.accept]
        (served,) = control.clients
        served.since -= 3600  # it has stalled for an hour
        control.check()
        key.data()
    assert not control.clients
    control.close()
    selector.close()


def test_a_second_master_cannot_take_the_socket_of_the_first(answering: Answering) -> None:
    with pytest.raises(CannotListen, match=r"^control socket: cannot listen on unix://.*in use"):
        control_listener(answering.path)
    assert repeated(answering, "status") == "status"


def test_an_error_names_a_path_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(SuperdError, match=r"^control socket: cannot listen on .*too long"):
        control_listener(tmp_path / ("x" * 120))


def test_a_request_without_a_master_fails_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SuperdError, match="no process listens there"):
        ask(tmp_path / "nowhere", "status")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(SuperdError, match="no process listens there"):
        ask(tmp_path / "dead", "status")


@pytest.mark.root
def test_another_user_cannot_connect(tmp_path: Path) -> None:
    selector = selectors.DefaultSelector()
    control = ControlSocket(control_listener(tmp_path / "control"), selector, line_of)
    tmp_path.chmod(0o755)

    def as_another_user() -> str:
        os.chdir(tmp_path)  # other users may not search the directories above
        os.setresuid(65534, 65534, 65534)
        try:
            ask(Path("control"), "status")
        except NotPermitted as error:
            return str(error)
        return "permitted"

    outcome = run_isolated({"ask": as_another_user})["ask"]
    assert outcome.result == "control socket control: it belongs to another user"
    control.close()
    selector.close()


@pytest.mark.root
def test_another_user_is_refused_whatever_the_mode_of_the_socket_is(tmp_path: Path) -> None:
    one = Answering(tmp_path / "control", "")
    one.path.chmod(0o666)
    tmp_path.chmod(0o755)

    def as_another_user() -> object:
        os.chdir(tmp_path)  # other users may not search the directories above
        os.setresuid(65534, 65534, 65534)
        return ask(Path("control"), "status")

    with contextlib.closing(one):
        answer = run_isolated({"ask": as_another_user})["ask"].result
        assert "user 65534 may not use this control socket; expected user 0" in answer["error"]
        assert answer["code"] == 77
        assert ask(one.path, "status")[1] == ""
