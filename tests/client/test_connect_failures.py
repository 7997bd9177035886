"""`superd connect` without an answer, or with an impossible command line."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path

import pytest

from superd.client.connect import ConnectOptions, connect_two_ways
from superd.errors import UsageError
from tests.client.peers import connect, connecting, endpoint, peer
from tests.support.harness import EVENT_TIMEOUT, receive_all
from tests.support.ports import free_port


def test_a_refusal_is_one_line_with_address_and_reason() -> None:
    address = f"127.0.0.1:{free_port()}"
    done = connect(address, code=1)
    assert done.stdout == b""
    assert done.stderr.decode() == f"superd: cannot connect to {address}: Connection refused\n"


def test_a_refusal_of_every_address_of_a_name() -> None:
    address = f"tcp://localhost:{free_port()}"
    printed = connect(address, code=1).stderr.decode()
    assert printed.startswith(f"superd: cannot connect to {address} (")
    assert "127.0.0.1" in printed
    assert printed.count("Connection refused") == 1


def test_a_missing_unix_socket(tmp_path: Path) -> None:
    printed = connect(f"unix://{tmp_path}/none", code=1).stderr.decode()
    expected = f"cannot connect to unix://{tmp_path}/none: No such file or directory"
    assert printed == f"superd: {expected}\n"


def test_an_unknown_host() -> None:
    printed = connect("--timeout", "5s", "nobody.invalid:7", code=1).stderr.decode()
    assert "nobody.invalid" in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("family", ["inet", "unix"])
def test_connecting_respects_the_timeout(family: str, tmp_path: Path) -> None:
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
        printed = connect("--timeout", "200ms", address, code=1).stderr.decode()
    assert printed.startswith(f"superd: cannot connect to {address}: ")
    assert "no connection in 0.2 s" in printed or "timed out" in printed


def test_silence_beyond_the_timeout_is_an_error() -> None:
    with peer(receive_all) as (address, _), connecting("--timeout", "200ms", address) as process:
        assert process.wait(EVENT_TIMEOUT) == 1
        assert process.stderr is not None
        printed = process.stderr.read().decode()
    assert printed == f"superd: no byte to or from {address} in 0.2 s\n"


def test_bytes_from_either_side_restart_the_timeout() -> None:
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
            assert seen.wait(EVENT_TIMEOUT)
            stdout, _ = process.communicate(timeout=EVENT_TIMEOUT)
        assert (process.returncode, stdout) == (0, b"...")


def test_the_source_address_can_be_chosen() -> None:
    with peer(lambda client: client.getpeername()[0]) as (address, served):
        connect("--source", "127.0.0.9", address)
        assert served.result() == "127.0.0.9"


def test_a_source_address_of_another_machine_is_an_error() -> None:
    printed = connect("--source", "192.0.2.200", f"127.0.0.1:{free_port()}", code=1).stderr.decode()
    assert "Cannot assign requested address" in printed or "Network is unreachable" in printed


@pytest.mark.parametrize(
    ("address", "options", "printed"),
    [
        ("host", ConnectOptions(), "expected a host and a port"),
        ("ftp://host:1", ConnectOptions(), "unixpacket://"),
        ("127.0.0.1:0", ConnectOptions(), "port 0 cannot be connected to"),
        ("127.0.0.1:no-such-port", ConnectOptions(), "neither a port nor a name"),
        ("unix://relative", ConnectOptions(), "expected an absolute path"),
        ("127.0.0.1:7", ConnectOptions(timeout="soon"), "--timeout: expected a duration"),
        (
            "udp://127.0.0.1:7",
            ConnectOptions(tls=True),
            "--tls takes a tcp or unix address, found udp://127.0.0.1:7",
        ),
        (
            "127.0.0.1:7",
            ConnectOptions(authorities="file"),
            "--ca, --server-name and --insecure take --tls",
        ),
        ("127.0.0.1:7", ConnectOptions(tls=True, authorities="/none"), "--ca /none: No such file"),
        (
            "127.0.0.1:7",
            ConnectOptions(tls=True, authorities="/dev/null"),
            "--ca /dev/null: the file has no certificate",
        ),
        (
            "[fe80::1%lo]:7",
            ConnectOptions(source="fe80::2"),
            "--source: [fe80::2] is an address of one link; add its network interface",
        ),
        ("unix:///none", ConnectOptions(tls=True), "--tls needs --server-name or --insecure"),
        (
            "unix:///none",
            ConnectOptions(source="127.0.0.1"),
            "--source takes a tcp or udp address, found unix:///none",
        ),
    ],
)
def test_impossible_options_are_a_usage_error(
    address: str, options: ConnectOptions, printed: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(printed)) as caught:
        connect_two_ways(address, options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
