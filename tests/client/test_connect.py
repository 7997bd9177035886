"""`superd connect` over tcp and unix sockets: the data arrives, and how the client ends."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tests.client.peers import connect, connecting, digest_of, peer, program
from tests.support.clients import exchange_digests, reset
from tests.support.harness import EVENT_TIMEOUT, Superd, command, receive_all, until
from tests.support.ports import free_port
from tests.support.programs import random_bytes

SIZE = 100_000_000

TOML = """
[service.echo]
plugin = "echo"
listen = [
    "tcp://127.0.0.1:0",
    "unix://{directory}/stream",
    "unix://@{directory}/abstract",
    "unixpacket://{directory}/packet",
]

[service.daytime]
plugin = "daytime"
listen = "tcp://127.0.0.1:0"
"""


def echo_address(served: Superd) -> str:
    host, port = served.address("echo")
    return f"{host}:{port}"


def test_all_bytes_are_echoed_unchanged(served: Superd) -> None:
    data = bytes(range(256)) * 4096 + b"\xff\xfe no line end"
    done = connect(f"tcp://{echo_address(served)}", data=data)
    assert (done.stdout, done.stderr) == (data, b"")


@pytest.mark.parametrize(
    "address",
    [
        "unix://{directory}/stream",
        "unix://@{directory}/abstract",
        "unixpacket://{directory}/packet",
    ],
)
def test_unix_sockets_with_and_without_a_file(served: Superd, address: str) -> None:
    done = connect(address.format(directory=served.directory), data=random_bytes(60_000))
    assert done.stdout == random_bytes(60_000)


def test_100_mb_each_way_at_the_same_time(tmp_path: Path) -> None:
    sent, answer = os.urandom(SIZE), os.urandom(SIZE)
    file = tmp_path / "sent"
    file.write_bytes(sent)
    with (
        peer(lambda client: exchange_digests(client, answer, 7)) as (address, served),
        open(file, "rb") as stdin,
        connecting(address, stdin=stdin) as process,
    ):
        assert process.stdout is not None
        received = digest_of(process.stdout)
        assert served.result(EVENT_TIMEOUT) == (received, hashlib.sha256(sent).hexdigest())
        assert received == hashlib.sha256(answer).hexdigest()
        assert process.wait(EVENT_TIMEOUT) == 0


@pytest.mark.tool("ncat")
def test_a_file_is_sent_to_ncat(tmp_path: Path) -> None:
    data = random_bytes(5_000_000)
    port = free_port()
    received = tmp_path / "received"
    listen = ("ncat", "-v", "-l", "127.0.0.1", str(port), "-c", f"cat > {received}")
    with program(r"Listening on (127.0.0.1)", *listen):
        connect(f"127.0.0.1:{port}", data=data)
        until(lambda: received.stat().st_size == len(data), "the file to be written")
    assert received.read_bytes() == data


@pytest.mark.tool("socat")
def test_socat_sends_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(random_bytes(5_000_000))
    listen = "TCP-LISTEN:0,bind=127.0.0.1"
    with program(
        r"listening on .*?([\d.]+:\d+)", "socat", "-dd", "-u", f"FILE:{file}", listen
    ) as at:
        assert connect(at).stdout == random_bytes(5_000_000)


@pytest.mark.tool("socat")
def test_ipv6() -> None:
    listen = "TCP6-LISTEN:0,bind=[::1]"
    with program(r"listening on .*:(\d+)$", "socat", "-dd", listen, "PIPE") as port:
        assert connect(f"[::1]:{port}", data=b"by IPv6").stdout == b"by IPv6"


def test_the_end_of_the_input_is_a_half_close_and_the_answer_is_awaited() -> None:
    def handle(client: socket.socket) -> bytes:
        question = receive_all(client)
        client.sendall(b"an answer after the end")
        return question

    with peer(handle) as (address, served):
        assert connect(address, data=b"question").stdout == b"an answer after the end"
        assert served.result() == b"question"


def test_without_half_close_only_the_peer_ends_the_connection() -> None:
    def handle(client: socket.socket) -> bool:
        assert client.recv(100) == b"question"
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.sendall(b"not ended")
        return True

    with peer(handle) as (address, served):
        done = connect("--no-half-close", address, data=b"question")
        assert done.stdout == b"not ended"
        assert served.result()


def test_a_peer_that_ends_first_is_still_sent_the_whole_input() -> None:
    ended = threading.Event()

    def handle(client: socket.socket) -> str:
        client.sendall(b"that is all from me")
        client.shutdown(socket.SHUT_WR)
        ended.set()
        return hashlib.sha256(receive_all(client)).hexdigest()

    with peer(handle) as (address, served), connecting(address) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert ended.wait(EVENT_TIMEOUT)
        assert process.stdout.read(19) == b"that is all from me"
        process.stdin.write(random_bytes(3_000_000))
        process.stdin.close()
        assert process.wait(EVENT_TIMEOUT) == 0
        assert served.result() == hashlib.sha256(random_bytes(3_000_000)).hexdigest()


def test_a_slow_reader_slows_the_peer_and_memory_stays_bounded() -> None:
    stuck = threading.Event()

    def handle(client: socket.socket) -> None:
        client.settimeout(0.3)
        left = memoryview(bytes(SIZE // 2))
        while left:
            try:
                left = left[client.send(left[: 1 << 18]) :]
            except TimeoutError:
                stuck.set()
                client.settimeout(EVENT_TIMEOUT)

    with peer(handle) as (address, _), connecting(address, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert stuck.wait(EVENT_TIMEOUT)
        status = Path(f"/proc/{process.pid}/status").read_text()
        (memory,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        assert int(memory) < 45_000  # kB; Python itself takes most of it
        assert digest_of(process.stdout) == hashlib.sha256(bytes(SIZE // 2)).hexdigest()
        assert process.wait(EVENT_TIMEOUT) == 0


def test_the_input_is_sent_while_the_output_is_not_read() -> None:
    with (
        peer(lambda client: exchange_digests(client, random_bytes(8_000_000), 3)) as (address, _),
        connecting(address) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        stuck = threading.Timer(EVENT_TIMEOUT, process.kill)
        stuck.start()
        process.stdin.write(random_bytes(7_000_000))  # all of it, before a byte is read
        process.stdin.close()
        stuck.cancel()
        assert digest_of(process.stdout) == hashlib.sha256(random_bytes(8_000_000)).hexdigest()
        assert process.wait(EVENT_TIMEOUT) == 0


def test_a_closed_output_ends_the_client_without_a_message() -> None:
    def handle(client: socket.socket) -> None:
        with pytest.raises(ConnectionError):
            client.sendall(bytes(SIZE))

    with peer(handle) as (address, _), connecting(address) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(EVENT_TIMEOUT) == 1
        assert process.stderr.read() == b""


def test_a_full_output_is_an_error(served: Superd) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("connect", echo_address(served)),
            input=b"hello", stdout=full, stderr=subprocess.PIPE, timeout=EVENT_TIMEOUT, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == b"superd: cannot write standard output: No space left on device\n"


def test_the_output_stays_blocking_for_other_processes(served: Superd) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb"), open(writer, "wb"):
        with connecting(echo_address(served), stdout=writer) as process:
            process.communicate(b"hello", EVENT_TIMEOUT)
        assert os.get_blocking(writer)
        assert os.read(reader, 100) == b"hello"


def test_the_output_is_appended_to_a_file(served: Superd, tmp_path: Path) -> None:
    file = tmp_path / "output"
    file.write_bytes(b"before ")
    with (
        open(file, "ab") as stdout,
        connecting(echo_address(served), stdout=stdout.fileno()) as process,
    ):
        process.communicate(b"after", EVENT_TIMEOUT)
    assert file.read_bytes() == b"before after"


def test_an_interrupt_ends_the_client_with_130() -> None:
    def handle(client: socket.socket) -> bytes:
        client.sendall(b"hello")
        return receive_all(client)

    with peer(handle) as (address, _), connecting(address) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"hello"
        process.send_signal(signal.SIGINT)
        assert process.wait(EVENT_TIMEOUT) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_reset_is_an_error_after_the_data_before_it() -> None:
    def handle(client: socket.socket) -> None:
        client.sendall(b"half a")
        assert client.recv(4) == b"seen"
        reset(client)

    with peer(handle) as (address, _), connecting(address) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(6) == b"half a"
        process.stdin.write(b"seen")
        process.stdin.flush()
        assert process.wait(EVENT_TIMEOUT) == 1
        assert process.stderr is not None
        printed = process.stderr.read().decode()
        assert printed == f"superd: {address} broke the connection: Connection reset by peer\n"


def test_a_peer_that_closes_with_unread_data_is_an_error() -> None:
    def handle(client: socket.socket) -> None:
        client.sendall(b"no, thank you")
        client.shutdown(socket.SHUT_WR)
        client.recv(1)

    with peer(handle) as (address, _):
        done = connect(address, data=random_bytes(20_000_000), code=1)
        assert done.stdout == b"no, thank you"
        assert f"superd: {address} closed before all was sent: " in done.stderr.decode()


def test_a_service_that_only_sends(served: Superd) -> None:
    host, port = served.address("daytime")
    assert connect(f"{host}:{port}").stdout.endswith(b"\n")
