"""The control socket: it answers whole, and no client of it stops the master."""

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

from superd.cli.daemon import ControlConnection, ask
from superd.errors import AddressInUse, NotPermitted, SuperdError
from superd.master.control_socket import (
    MAX_CLIENTS,
    MAX_REQUEST_BYTES,
    ControlSocket,
    Later,
    control_listener,
    line_of,
)
from superd.process.isolated import run_isolated
from tests.support.harness import PATIENCE, until


class Never:
    """An answer that does not come until it is given up."""

    def begin(self, reply: Callable[[bytes], None]) -> None:
        self.reply = reply

    def give_up(self) -> None:
        self.reply(line_of("given up"))


class Answering:
    """A control socket, and the loop of a master that has nothing else to do."""

    def __init__(self, path: Path, answer: Any) -> None:
        self.path = path
        self.said = answer
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
                client.since -= 1.0 if client.later else 0.0  # seconds are short here
            self.control.check()

    def answer(self, line: bytes) -> bytes | Later:
        return Never() if b"never" in line else line_of([line.decode(), self.said])

    def close(self) -> None:
        self.stop.close()
        self.thread.join(PATIENCE)
        self.control.close()
        self.end.close()
        self.selector.close()

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE)
        client.connect(str(self.path))
        return client


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Answering]:
    one = Answering(tmp_path / "control", "x" * 10_000_000)
    yield one
    one.close()


def told(answering: Answering, word: str) -> Any:
    """Return what the answer says of the request."""
    return json.loads(ask(answering.path, word)[0])["request"]


def test_an_answer_of_ten_megabytes_arrives_whole(answering: Answering) -> None:
    request, said = ask(answering.path, "status", of="all")
    assert (json.loads(request), said) == ({"request": "status", "of": "all"}, "x" * 10_000_000)


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


def test_a_request_that_comes_in_pieces_is_put_together(answering: Answering) -> None:
    answering.said = ""
    with answering.client() as client, client.makefile() as answers:
        for byte in b"status\n":
            client.sendall(bytes([byte]))
        assert json.loads(answers.readline()) == ["status", ""]


@pytest.mark.parametrize("end", ["", "\n"])
def test_too_long_a_line_is_refused_and_its_client_dropped(answering: Answering, end: str) -> None:
    with answering.client() as client:
        client.sendall(b"x" * (MAX_REQUEST_BYTES + 1) + end.encode())
        with client.makefile() as answers:
            told = json.loads(answers.readline())
            assert told == {"error": f"expected a request of at most {MAX_REQUEST_BYTES} bytes"}
            assert answers.read() == ""


def test_who_waits_for_an_answer_keeps_nobody_else_waiting(answering: Answering) -> None:
    with answering.client() as client:
        client.sendall(b"never\n")
        assert told(answering, "status") == "status"
        with client.makefile() as answers:
            assert json.loads(answers.readline()) == "given up"


def test_who_has_gone_before_the_answer_came_is_forgotten(answering: Answering) -> None:
    for _ in range(MAX_CLIENTS):
        with answering.client() as client:
            client.sendall(b"never\n")
    until(lambda: isinstance(ask(answering.path, "status"), list), "a free place")


def test_the_socket_is_for_its_owner_alone_and_goes_with_the_master(tmp_path: Path) -> None:
    path = tmp_path / "control"
    one = Answering(path, None)
    assert path.stat().st_mode & 0o777 == 0o600
    one.close()
    assert not path.exists()


def test_clients_that_stall_hang_up_or_talk_nonsense_disturb_nobody(answering: Answering) -> None:
    silent = [answering.client() for _ in range(5)]
    for request in (b"\x00\xff", b"x" * 10_000, b"\n", b"status\n", b"status\n" * 500):
        with answering.client() as client:
            client.sendall(request)  # and leave before the answer is read
    deaf = answering.client()
    deaf.sendall(b"status\n")  # and never read
    for _ in range(3):
        assert told(answering, "status") == "status"
    for client in (*silent, deaf):
        client.close()


def test_those_who_come_when_all_places_are_taken_are_turned_away(answering: Answering) -> None:
    silent = [answering.client() for _ in range(MAX_CLIENTS)]
    assert "clients are connected already" in ask(answering.path, "status")["error"]
    for client in silent:
        client.close()
    until(lambda: isinstance(ask(answering.path, "status"), list), "a place to become free")


def test_a_client_that_was_dropped_in_the_same_turn_is_forgotten(tmp_path: Path) -> None:
    selector = selectors.DefaultSelector()
    control = ControlSocket(control_listener(tmp_path / "control"), selector, line_of)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "control"))
        control.accept()
        client.sendall(b"status\n")
        (key,) = [key for key, _ in selector.select(0) if key.data != control.accept]
        (booked,) = control.clients
        booked.since -= 3600  # it has stalled for an hour
        control.check()
        key.data()
    assert not control.clients
    control.close()
    selector.close()


def test_a_second_master_does_not_get_the_socket_of_the_first(answering: Answering) -> None:
    with pytest.raises(AddressInUse, match=r"^control socket: cannot listen on unix://.*in use"):
        control_listener(answering.path)
    assert told(answering, "status") == "status"


def test_a_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(SuperdError, match=r"^control socket: cannot listen on .*too long"):
        control_listener(tmp_path / ("x" * 120))


def test_asking_where_nobody_answers_says_so(tmp_path: Path) -> None:
    with pytest.raises(SuperdError, match="No such file"):
        ask(tmp_path / "nowhere", "status")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(SuperdError, match="Connection refused"):
        ask(tmp_path / "dead", "status")


@pytest.mark.root
def test_another_user_is_not_permitted_to_ask(tmp_path: Path) -> None:
    selector = selectors.DefaultSelector()
    control = ControlSocket(control_listener(tmp_path / "control"), selector, line_of)
    tmp_path.chmod(0o755)

    def as_another_user() -> str:
        os.chdir(tmp_path)  # what is above may be closed to others
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
def test_another_user_is_not_heard_whatever_the_mode_of_the_file_is(tmp_path: Path) -> None:
    one = Answering(tmp_path / "control", "")
    one.path.chmod(0o666)
    tmp_path.chmod(0o755)

    def as_another_user() -> object:
        os.chdir(tmp_path)  # what is above may be closed to others
        os.setresuid(65534, 65534, 65534)
        return ask(Path("control"), "status")

    with contextlib.closing(one):
        told = run_isolated({"ask": as_another_user})["ask"].result
        assert "user 65534 may not use this control socket; expected user 0" in told["error"]
        assert told["code"] == 77
        assert ask(one.path, "status")[1] == ""
