"""`superd connect` where nobody answers, or the command line asks for what cannot be."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path

import pytest

from superd.client.connect import ConnectOptions, connect_two_ways
from superd.errors import UsageError
from tests.client.peers import connect, connecting, endpoint, free_port, peer
from tests.support.harness import PATIENCE, receive_all


def test_a_refusal_is_one_line_with_address_and_reason() -> None:
    address = f"127.0.0.1:{free_port()}"
    done = connect(address, code=1)
    assert done.stdout == b""
    assert done.stderr.decode() == f"superd: cannot connect to {address}: Connection refused\n"


def test_a_refusal_of_every_address_of_a_name() -> None:
    address = f"tcp://localhost:{free_port()}"
    told = connect(address, code=1).stderr.decode()
    assert told.startswith(f"superd: cannot connect to {address} (")
    assert "127.0.0.1" in told
    assert told.count("Connection refused") == 1


def test_a_unix_socket_that_is_not_there(tmp_path: Path) -> None:
    told = connect(f"unix://{tmp_path}/none", code=1).stderr.decode()
    expected = f"cannot connect to unix://{tmp_path}/none: No such file or directory"
    assert told == f"superd: {expected}\n"


def test_an_unknown_host() -> None:
    told = connect("--timeout", "5s", "nobody.invalid:7", code=1).stderr.decode()
    assert "nobody.invalid" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("family", ["inet", "unix"])
def test_connecting_takes_no_longer_than_it_may(family: str, tmp_path: Path) -> None:
    if family == "inet":
        full = socket.create_server(("127.0.0.1", 0), backlog=0)
    else:
        full = socket.socket(socket.AF_UNIX)
        full.bind(str(tmp_path / "full"))
        full.listen(0)
    with full, socket.socket(full.family) as first, socket.socket(full.family) as second:
        first.connect(full.getsockname())
        second.setblocking(False)
        second.connect_ex(full.getsockname())  # there is no room for another
        address = endpoint(full)
        told = connect("--timeout", "200ms", address, code=1).stderr.decode()
    assert told.startswith(f"superd: cannot connect to {address}: ")
    assert "no connection in 0.2 s" in told or "timed out" in told


def test_silence_ends_it_and_is_told() -> None:
    with peer(receive_all) as (address, _), connecting("--timeout", "200ms", address) as process:
        assert process.wait(PATIENCE) == 1
        assert process.stderr is not None
        told = process.stderr.read().decode()
    assert told == f"superd: no byte to or from {address} in 0.2 s\n"


def test_bytes_from_either_side_begin_the_time_anew() -> None:
    seen = threading.Event()

    def handle(client: socket.socket) -> None:
        client.settimeout(0.25)
        for _ in range(3):
            with pytest.raises(TimeoutError):  # that much later, there is one more byte
                client.recv(1)
            client.sendall(b".")
        seen.set()

    with peer(handle) as (address, _):
        with connecting("--timeout", "500ms", address) as process:
            assert seen.wait(PATIENCE)
            stdout, _ = process.communicate(timeout=PATIENCE)
        assert (process.returncode, stdout) == (0, b"...")


def test_a_source_of_its_own() -> None:
    with peer(lambda client: client.getpeername()[0]) as (address, served):
        connect("--source", "127.0.0.9", address)
        assert served.result() == "127.0.0.9"


def test_a_source_that_is_not_ours() -> None:
    told = connect("--source", "192.0.2.200", f"127.0.0.1:{free_port()}", code=1).stderr.decode()
    assert "Cannot assign requested address" in told or "Network is unreachable" in told


@pytest.mark.parametrize(
    ("address", "manner", "told"),
    [
        ("host", ConnectOptions(), "expected a host and a port"),
        ("ftp://host:1", ConnectOptions(), "unixpacket://"),
        ("127.0.0.1:0", ConnectOptions(), "port 0 cannot be connected to"),
        ("127.0.0.1:no-such-port", ConnectOptions(), "neither a port nor a name"),
        ("unix://relative", ConnectOptions(), "expected an absolute path"),
        ("127.0.0.1:7", ConnectOptions(timeout="soon"), "--timeout: expected a duration"),
        ("udp://127.0.0.1:7", ConnectOptions(tls=True), "--tls goes with tcp"),
        ("127.0.0.1:7", ConnectOptions(authorities="file"), "go with --tls"),
        ("127.0.0.1:7", ConnectOptions(tls=True, authorities="/none"), "--ca /none: No such file"),
        (
            "127.0.0.1:7",
            ConnectOptions(tls=True, authorities="/dev/null"),
            "--ca /dev/null: it holds no certificate",
        ),
        ("unix:///none", ConnectOptions(tls=True), "--server-name"),
        ("unix:///none", ConnectOptions(source="127.0.0.1"), "--source goes with tcp"),
    ],
)
def test_what_cannot_be_is_a_mistake_of_usage(
    address: str, manner: ConnectOptions, told: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(told)) as caught:
        connect_two_ways(address, manner)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
