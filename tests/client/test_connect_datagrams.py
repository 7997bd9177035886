"""`superd connect` with datagrams: one per read or line, and the answers on the output."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from tests.client.peers import connect, connecting
from tests.support.harness import EVENT_TIMEOUT, Superd
from tests.support.ports import free_port

TOML = """
[service.echo]
plugin = "echo"
listen = ["udp://127.0.0.1:0", "udp://[::1]:0", "unixgram://{directory}/datagram"]
"""

SHORT = ("--timeout", "150ms")


@contextlib.contextmanager
def listening() -> Iterator[tuple[socket.socket, str]]:
    """Yield a datagram socket and its address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(EVENT_TIMEOUT)
        yield server, f"udp://127.0.0.1:{server.getsockname()[1]}"


def answer(at: str, data: bytes) -> bytes:
    """Send a datagram and return the answer; end the input once it has arrived."""
    with connecting(*SHORT, at) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(data)
        process.stdin.flush()
        answer = process.stdout.read(len(data))
        assert process.communicate(timeout=EVENT_TIMEOUT) == (b"", b"")
        return answer


def test_a_datagram_is_echoed(served: Superd) -> None:
    for host, port in served.addresses("echo", "udp"):
        at = f"udp://[{host}]:{port}" if ":" in host else f"udp://{host}:{port}"
        assert answer(at, b"hello") == b"hello"


def test_a_unix_socket_can_answer(served: Superd) -> None:
    at = f"unixgram://{served.directory}/datagram"
    assert answer(at, bytes(60_000)) == bytes(60_000)


def test_each_read_is_a_datagram() -> None:
    with listening() as (server, at), connecting(*SHORT, at) as process:
        assert process.stdin is not None
        for data in (b"one", b"two\nthree\n"):
            process.stdin.write(data)
            process.stdin.flush()
            got, client = server.recvfrom(100)
            assert got == data
        server.sendto(b"answer", client)
        process.stdin.close()
        assert process.stdout is not None
        assert process.stdout.read() == b"answer"
        assert process.wait(EVENT_TIMEOUT) == 0


def test_with_line_each_line_is_a_datagram() -> None:
    with listening() as (server, at):
        connect("--line", *SHORT, at, data=b"one\n\ntwo\r\nthree")
        assert [server.recv(100) for _ in range(4)] == [b"one\n", b"\n", b"two\r\n", b"three"]


def test_a_lost_datagram_is_no_error() -> None:
    with listening() as (server, at):
        done = connect(*SHORT, at, data=b"lost")
        assert (done.stdout, done.stderr) == (b"", b"")
        assert server.recv(100) == b"lost"


def test_each_answer_extends_the_time_until_the_end() -> None:
    with listening() as (server, at), connecting("--timeout", "1s", at) as process:
        assert process.stdin is not None
        process.stdin.write(b"question")
        process.stdin.close()
        _, client = server.recvfrom(100)
        server.settimeout(0.4)
        for _ in range(3):
            with contextlib.suppress(TimeoutError):  # that much later, there is one more
                server.recv(1)
            server.sendto(b".", client)
        assert process.stdout is not None
        assert process.stdout.read() == b"..."
        assert process.wait(EVENT_TIMEOUT) == 0


def test_a_refusal_is_an_error() -> None:
    at = f"udp://127.0.0.1:{free_port()}"
    printed = connect(at, data=b"hello", code=1).stderr.decode()
    assert printed == f"superd: cannot connect to {at}: Connection refused\n"
