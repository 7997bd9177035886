"""The control socket: it answers whole, and no client of it stops the master."""

from __future__ import annotations

import json
import os
import selectors
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from superd.errors import AddressInUse, NotPermitted, SuperdError
from superd.master.control import MOST_CLIENTS, ControlSocket, ask, control_listener
from superd.master.isolated import run_isolated
from tests.harness import PATIENCE, until


class Answering:
    """A control socket, and the loop of a master that has nothing else to do."""

    def __init__(self, path: Path, answer: Any) -> None:
        self.path = path
        self.selector = selectors.DefaultSelector()
        self.control = ControlSocket(
            control_listener(path), self.selector, lambda request: [request, answer]
        )
        self.stop, end = socket.socketpair()
        self.selector.register(end, selectors.EVENT_READ, None)
        self.end = end
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.end:
                    return
                key.data()

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


def test_an_answer_of_ten_megabytes_arrives_whole(answering: Answering) -> None:
    assert ask(answering.path, "status") == ["status", "x" * 10_000_000]


def test_the_socket_is_for_its_owner_alone_and_goes_with_the_master(tmp_path: Path) -> None:
    path = tmp_path / "control"
    one = Answering(path, None)
    assert path.stat().st_mode & 0o777 == 0o600
    one.close()
    assert not path.exists()


def test_clients_that_stall_hang_up_or_talk_nonsense_disturb_nobody(answering: Answering) -> None:
    silent = [answering.client() for _ in range(5)]
    for request in (b"\x00\xff", b"x" * 10_000, b"\n", b"status"):
        with answering.client() as client:
            client.sendall(request)  # and leave before the answer is read
    deaf = answering.client()
    deaf.sendall(b"status")  # and never read
    for _ in range(3):
        assert ask(answering.path, "status")[0] == "status"
    for client in (*silent, deaf):
        client.close()


def test_those_who_come_when_all_places_are_taken_are_turned_away(answering: Answering) -> None:
    silent = [answering.client() for _ in range(MOST_CLIENTS)]
    with pytest.raises(SuperdError, match="control socket"):
        ask(answering.path, "status")
    for client in silent:
        client.close()

    def is_answered() -> bool:
        try:
            return bool(ask(answering.path, "status"))
        except SuperdError:
            return False

    until(is_answered, "a place to become free")


def test_a_client_that_was_dropped_in_the_same_turn_is_forgotten(tmp_path: Path) -> None:
    selector = selectors.DefaultSelector()
    control = ControlSocket(control_listener(tmp_path / "control"), selector, json.dumps)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "control"))
        control.accept()
        client.sendall(b"status")
        (key,) = [key for key, _ in selector.select(0) if key.data != control.accept]
        (booked,) = control.clients
        booked.since -= 3600  # it has stalled for an hour
        control.look()
        key.data()
    assert not control.clients
    control.close()
    selector.close()


def test_a_second_master_does_not_get_the_socket_of_the_first(answering: Answering) -> None:
    with pytest.raises(AddressInUse, match=r"^control socket: cannot listen on unix://.*in use"):
        ControlSocket(control_listener(answering.path), selectors.DefaultSelector(), str)
    assert ask(answering.path, "status")[0] == "status"


def test_a_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(SuperdError, match=r"^control socket: cannot listen on .*too long"):
        ControlSocket(control_listener(tmp_path / ("x" * 120)), selectors.DefaultSelector(), str)


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
    control = ControlSocket(control_listener(tmp_path / "control"), selector, str)
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
