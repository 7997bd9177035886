"""`superd connect --tls`: which certificates are trusted, what arrives, and truncation."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from superd.client.encryption import Encrypted, Trust, encrypted
from superd.client.reaching import Deadline
from tests.client.peers import connect, connecting, peer, program
from tests.support.clients import reset
from tests.support.harness import EVENT_TIMEOUT, receive_all
from tests.support.programs import random_bytes

pytestmark = pytest.mark.tool("openssl")


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for localhost and 127.0.0.1."""

    file: str
    key: str

    def server(self) -> ssl.SSLContext:
        """Return the TLS context of a server."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.file, self.key)
        return context


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    directory = tmp_path_factory.mktemp("certificate")
    made = Certificate(str(directory / "certificate"), str(directory / "key"))
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-days", "2", "-keyout", made.key, "-out", made.file,
            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


@contextlib.contextmanager
def tls_peer(certificate: Certificate, handle: Callable[[ssl.SSLSocket], object]) -> Iterator[str]:
    """Serve one connection, with a handshake first."""

    def serve(client: socket.socket) -> None:
        with certificate.server().wrap_socket(client, server_side=True) as wrapped:
            handle(wrapped)

    with peer(serve) as (address, _):
        yield address


@contextlib.contextmanager
def s_server(certificate: Certificate, *arguments: str) -> Iterator[str]:
    """Run openssl's server; yield its port."""
    files = ("-cert", certificate.file, "-key", certificate.key)
    listen = ("openssl", "s_server", "-accept", "127.0.0.1:0", *files, *arguments)
    with program(r"^ACCEPT .*:(\d+)$", *listen) as port:
        yield port


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_line_is_answered_by_openssl(certificate: Certificate, version: str) -> None:
    with s_server(certificate, "-rev", version) as port:
        trusted = ("--tls", "--ca", certificate.file)
        done = connect(*trusted, f"localhost:{port}", data=b"hello\nCLOSE\n")
    assert done.stdout == b"olleh\n"


def test_a_certificate_of_an_unknown_authority_is_refused(certificate: Certificate) -> None:
    with s_server(certificate) as port:
        printed = connect("--tls", f"localhost:{port}", code=1).stderr.decode()
    assert printed.startswith(f"superd: the certificate of localhost:{port} is not trusted: self")
    assert "--ca FILE" in printed
    assert printed.count("\n") == 1


def test_a_certificate_for_another_name_is_refused(certificate: Certificate) -> None:
    trusted = ("--tls", "--ca", certificate.file)
    with s_server(certificate, "-rev") as port:
        printed = connect(
            *trusted, "--server-name", "example.org", f"localhost:{port}", code=1
        ).stderr.decode()
        assert "example.org" in printed
        done = connect(*trusted, f"127.0.0.1:{port}", data=b"an address\nCLOSE\n")
        assert done.stdout == b"sserdda na\n"


def test_insecure_accepts_any_certificate(certificate: Certificate) -> None:
    with s_server(certificate, "-rev") as port:
        done = connect("--tls", "--insecure", f"127.0.0.1:{port}", data=b"x\nCLOSE\n")
    assert done.stdout == b"x\n"


@pytest.mark.tool("socat")
def test_30_mb_there_and_back(certificate: Certificate) -> None:
    data = random_bytes(30_000_000)
    listen = (
        f"OPENSSL-LISTEN:0,bind=127.0.0.1,cert={certificate.file},key={certificate.key},verify=0"
    )
    # with blocks above 4 KiB socat may wait for room in its own pipe for ever
    echo = ("socat", "-dd", "-t", "10", "-b", "4096", listen, "PIPE")
    with program(r"listening on .*:(\d+)$", *echo) as port:
        done = connect("--tls", "--ca", certificate.file, f"localhost:{port}", data=data)
    assert done.stdout == data


def test_the_end_of_the_input_is_a_close_notify_and_the_answer_is_awaited(
    certificate: Certificate,
) -> None:
    def handle(client: ssl.SSLSocket) -> None:
        # the answer is on its way while close_notify is sent
        client.sendall(random_bytes(1_000_000))
        assert receive_all(client) == b"question"
        client.sendall(b"answer")
        client.unwrap()

    with tls_peer(certificate, handle) as address:
        done = connect("--tls", "--ca", certificate.file, address, data=b"question")
    assert done.stdout == random_bytes(1_000_000) + b"answer"


def close_only(client: ssl.SSLSocket) -> None:
    client.close()


@pytest.mark.parametrize("end", [close_only, reset])
def test_an_end_without_close_notify_is_an_error(
    certificate: Certificate, end: Callable[[ssl.SSLSocket], None]
) -> None:
    def handle(client: ssl.SSLSocket) -> None:
        client.sendall(b"half a mess")
        assert client.recv(10) == b"read"
        end(client)

    trusted = ("--tls", "--no-half-close", "--ca", certificate.file)
    with tls_peer(certificate, handle) as address, connecting(*trusted, address) as process:
        assert process.stdout is not None
        # A reset discards what the client has not read yet, so it waits until the client has
        # read everything and says so.
        assert process.stdout.read(11) == b"half a mess"
        rest, printed = process.communicate(b"read", EVENT_TIMEOUT)
    assert (process.returncode, rest) == (1, b"")
    assert (
        "closed the connection without close_notify: the data may be truncated" in printed.decode()
    )


def test_a_peer_without_tls_is_an_error() -> None:
    def handle(client: socket.socket) -> None:
        client.recv(1000)
        client.sendall(b"220 welcome to a service of another kind\r\n")

    with peer(handle) as (address, _):
        printed = connect("--tls", "--insecure", address, code=1).stderr.decode()
    assert printed == f"superd: no TLS handshake with {address}: wrong version number\n"


def test_the_handshake_respects_the_timeout() -> None:
    with peer(receive_all) as (address, _):
        printed = connect(
            "--tls", "--insecure", "--timeout", "200ms", address, code=1
        ).stderr.decode()
    assert printed == f"superd: no TLS handshake with {address} in 0.2 s\n"


@pytest.mark.tool("socat")
def test_tls_over_a_unix_socket(certificate: Certificate, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    trusted = ("--tls", "--ca", certificate.file, "--server-name", "localhost")
    with (
        s_server(certificate, "-rev") as port,
        program(r"(listening) on", "socat", "-dd", f"UNIX-LISTEN:{path}", f"TCP:127.0.0.1:{port}"),
    ):
        done = connect(*trusted, f"unix://{path}", data=b"hello\nCLOSE\n")
    assert done.stdout == b"olleh\n"


def received(stream: Encrypted, size: int) -> bytes:
    """Receive some bytes as the loop of `superd connect` does, in small pieces."""
    room, data = memoryview(bytearray(100)), b""
    while len(data) < size:
        if not stream.has_more:
            assert select.select([stream], [], [], EVENT_TIMEOUT)[0], (
                f"stuck after {len(data)} bytes"
            )
        with contextlib.suppress(BlockingIOError):
            got = stream.receive(room[: size - len(data)])
            assert got
            data += room[:got]
    return data


def test_received_data_is_kept_while_this_side_ends(certificate: Certificate) -> None:
    """Three records are here and the second is half read: close_notify must not discard them."""
    sent = threading.Event()

    def serve(client: socket.socket) -> None:
        with certificate.server().wrap_socket(client, server_side=True) as wrapped:
            wrapped.settimeout(EVENT_TIMEOUT)
            wrapped.sendall(random_bytes(40_000))
            sent.set()
            assert wrapped.recv(10) == b""
            wrapped.sendall(b"answer")
            wrapped.unwrap()

    ours, theirs = socket.socketpair()
    trust = Trust("localhost", certificate.file, insecure=False)
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve, theirs)
        stream = encrypted(ours, "peer", trust, Deadline(EVENT_TIMEOUT))
        assert sent.wait(EVENT_TIMEOUT)
        data = received(stream, 20_000)
        stream.end()
        assert data + received(stream, 20_000) == random_bytes(40_000)
        assert received(stream, 6) == b"answer"
        assert select.select([stream], [], [], EVENT_TIMEOUT)[0]
        assert stream.receive(memoryview(bytearray(1))) == 0
        served.result(EVENT_TIMEOUT)
