"""Listeners that a worker broke: repaired in place, or bound again once that is possible."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from superd.config.model import Service
from superd.listen.listeners import listen
from superd.master.logs.log import Log
from superd.master.workers.listeners import BROKEN, WITHOUT, Listeners
from superd.net.addresses import Transport, parse_addresses
from tests.support.ports import free_port


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return tmp_path / "log"


@contextlib.contextmanager
def listening(address: str, log_file: Path) -> Iterator[Listeners]:
    """Listen on an address, which is that of the service `one`."""
    entry = Service.model_construct(plugin="echo", listen=parse_addresses(address))
    log = Log([str(log_file)], "text")
    listeners = Listeners(listen({"one": entry}), log)
    try:
        yield listeners
    finally:
        listeners.close()
        log.close()


def break_for_good(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # ENOTCONN, although it is shut down
        sock.shutdown(socket.SHUT_RDWR)


def test_a_listener_that_was_shut_down_is_repaired_without_new_workers(log_file: Path) -> None:
    port = free_port()  # a shutdown would lose a port that Linux chose
    with listening(f"tcp://127.0.0.1:{port}", log_file) as listeners:
        ((_, address, sock),) = listeners.sockets({"one"})
        sock.shutdown(socket.SHUT_RDWR)
        assert list(listeners.check()) == []
        assert listeners.sockets({"one"}) == [("one", address, sock)]
        socket.create_connection((address.host, address.port)).close()
        assert log_file.read_text().count("was shut down; repaired") == 1
        assert list(listeners.check()) == []
        assert log_file.read_text().count("\n") == 1


def test_a_listener_beyond_repair_is_bound_again_once_no_process_holds_the_address(
    log_file: Path,
) -> None:
    with listening("udp://127.0.0.1:0", log_file) as listeners:
        ((_, address, sock),) = listeners.sockets({"one"})
        with sock.dup():  # as a worker has it
            break_for_good(sock)
            assert list(listeners.check()) == [("one", BROKEN)]
            for _ in range(3):
                assert list(listeners.check()) == []
                assert listeners.sockets({"one"}) == []
                assert listeners.ports(Transport.UDP) == {address.port}
        assert list(listeners.renew_lost()) == [("one", WITHOUT)]
        ((_, again, renewed),) = listeners.sockets({"one"})
        assert again == address
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"hello", (address.host, address.port))
        assert renewed.recv(5) == b"hello"
    lines = log_file.read_text().splitlines()
    assert len(lines) == 2
    assert "is beyond repair" in lines[0]
    assert "is bound again" in lines[1]


def test_an_address_that_another_program_holds_is_retried(tmp_path: Path, log_file: Path) -> None:
    path = tmp_path / "socket"
    with listening(f"unix://{path}", log_file) as listeners:
        ((_, _, sock),) = listeners.sockets({"one"})
        break_for_good(sock)
        assert list(listeners.check()) == [("one", BROKEN)]
        path.write_text("another program's")
        for _ in range(3):
            assert list(listeners.check()) == []
        assert path.read_text() == "another program's"
        os.unlink(path)
        assert list(listeners.check()) == [("one", WITHOUT)]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_only_the_services_of_a_pool_get_its_sockets(log_file: Path) -> None:
    with listening("tcp://127.0.0.1:0", log_file) as listeners:
        assert [service for service, *_ in listeners.sockets({"one", "two"})] == ["one"]
        assert listeners.sockets({"two"}) == []
        assert listeners.ports(Transport.UDP) == frozenset()
