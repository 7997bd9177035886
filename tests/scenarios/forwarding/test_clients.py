"""Ordinary clients and servers exchange data through a forward, unchanged."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import os
import shlex
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Start
from tests.support.forwards import closed_records, forward, only_record, running
from tests.support.harness import Superd
from tests.support.ports import free_port
from tests.support.programs import (
    CLIENT_TIMEOUT,
    OWN_GIT,
    digest,
    git,
    output,
    output_for_input,
    public_directory,
    random_bytes,
)
from tests.support.ssh import Ssh

pytestmark = pytest.mark.slow

LARGE = 5_000_000
PARALLEL = 100


class Handler(http.server.BaseHTTPRequestHandler):
    """GET /NUMBER sends so many bytes; PUT returns the digest of its body."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply(random_bytes(int(self.path[1:])))

    def do_PUT(self) -> None:
        left, checksum = int(self.headers["Content-Length"]), hashlib.sha256()
        while left:
            part = self.rfile.read(min(left, 65536))
            left -= len(part)
            checksum.update(part)
        self.reply(checksum.hexdigest().encode())

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Http(socketserver.ThreadingTCPServer):
    request_queue_size = PARALLEL


class UnixHttp(socketserver.ThreadingUnixStreamServer):
    request_queue_size = PARALLEL


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    """Serve in threads, which end with the block."""
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.01))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def http_target() -> Iterator[str]:
    server = Http(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"tcp://127.0.0.1:{server.server_address[1]}"


def host_and_port(served: Superd, transport: str = "tcp") -> str:
    host, port = served.address("forward", transport)
    return f"{host}:{port}"


def url(served: Superd, path: object) -> str:
    return f"http://{host_and_port(served)}/{path}"


CURL = ("curl", "-sS", "-f")
NO_JAIL = 'chroot = ""'  # the target's path is outside of the jail


@pytest.mark.tool("curl")
def test_curl_keeps_a_connection_alive_for_many_requests(
    start_superd: Start, http_target: str, tmp_path: Path
) -> None:
    served = forward(start_superd, http_target)
    got = [tmp_path / str(size) for size in (0, 1, 1000, LARGE)]
    outputs = [word for file in got for word in (url(served, file.name), "-o", str(file))]
    output(*CURL, *outputs)
    for file in got:
        assert digest(file.read_bytes()) == digest(random_bytes(int(file.name)))
    closed = only_record(served)
    assert closed["out"] > LARGE + 1001
    assert (closed["target"], closed["end"]) == (http_target, "client")


@pytest.mark.tool("curl")
def test_curl_makes_a_hundred_concurrent_requests(
    start_superd: Start, http_target: str, tmp_path: Path
) -> None:
    served = forward(start_superd, http_target)
    output(
        *CURL, "--parallel", "--parallel-immediate", "--parallel-max", str(PARALLEL),
        url(served, f"[100001-{100000 + PARALLEL}]"), "-o", str(tmp_path / "#1"),
    )  # fmt: skip
    sizes = range(100_001, 100_001 + PARALLEL)
    for size in sizes:
        assert digest((tmp_path / str(size)).read_bytes()) == digest(random_bytes(size))
    events = closed_records(served, served.counts("forward")["accepted"])
    assert {event["target"] for event in events} == {http_target}
    assert sum(event["out"] for event in events) > sum(sizes)


@pytest.mark.tool("curl")
def test_curl_uploads_a_file(start_superd: Start, http_target: str, tmp_path: Path) -> None:
    served = forward(start_superd, http_target)
    file = tmp_path / "large"
    file.write_bytes(random_bytes(LARGE))
    assert output(*CURL, "-T", str(file), url(served, "")).decode() == digest(random_bytes(LARGE))
    closed = only_record(served)
    assert closed["in"] > LARGE
    assert closed["out"] < 1000


@pytest.mark.tool("curl")
def test_curl_is_forwarded_between_unix_sockets(start_superd: Start, tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(random_bytes(LARGE))
    with public_directory() as public:
        target, path = public / "target", public / "listener"
        with serving(UnixHttp(str(target), Handler)):
            target.chmod(0o777)
            served = forward(start_superd, f"unix://{target}", f"unix://{path}", keys=NO_JAIL)
            curl = (*CURL, "--unix-socket", str(path))
            printed = output(*curl, "-T", str(file), "http://localhost/")
            got = output(*curl, f"http://localhost/{LARGE}")
    assert (printed.decode(), digest(got)) == (digest(random_bytes(LARGE)),) * 2
    for event in closed_records(served, 2):
        assert (event["target"], event["end"]) == (f"unix://{target}", "client")


# git, over its own protocol and over ssh


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with one commit, beside a bare one to push to."""
    directory = tmp_path / "repositories" / "project"
    directory.mkdir(parents=True)
    git(directory, "init", "-q", "-b", "main")
    commit(directory, "first", 2_000_000)
    git(directory, "init", "-q", "--bare", "-b", "main", str(directory.parent / "bare"))
    return directory


def commit(directory: Path, name: str, size: int) -> None:
    (directory / name).write_bytes(random_bytes(size))
    git(directory, "add", name)
    git(directory, "commit", "-q", "-m", name)


def check_clone_and_push(project: Path, clone: Path, base: str, env: dict[str, str]) -> None:
    """Clone, commit, push to the bare repository, and check the result."""
    output("git", "clone", "-q", f"{base}/project", str(clone), env={**OWN_GIT, **env})
    assert git(clone, "rev-parse", "HEAD") == git(project, "rev-parse", "HEAD")
    commit(clone, "second", 3_000_000)
    output("git", "-C", str(clone), "push", "-q", f"{base}/bare", "main", env={**OWN_GIT, **env})
    bare = project.parent / "bare"
    assert git(bare, "rev-parse", "main") == git(clone, "rev-parse", "HEAD")
    assert git(bare, "fsck", "--strict") == ""
    shown = output("git", "-C", str(bare), "show", "main:second", env=OWN_GIT)
    assert digest(shown) == digest(random_bytes(3_000_000))


@pytest.mark.tool("git")
def test_git_clones_and_pushes_over_its_own_protocol(
    start_superd: Start, project: Path, tmp_path: Path
) -> None:
    port = free_port()
    program = f"{git(project, '--exec-path')}/git-daemon"
    command = [program, "--listen=127.0.0.1", f"--port={port}", f"--base-path={project.parent}"]
    command += ["--export-all", "--enable=receive-pack", "--reuseaddr"]
    with running(*command, port=port, env={**os.environ, **OWN_GIT}):
        served = forward(start_superd, f"tcp://127.0.0.1:{port}")
        check_clone_and_push(project, tmp_path / "clone", f"git://{host_and_port(served)}", {})
        cloned, pushed = closed_records(served, 2)
    assert cloned["out"] > 2_000_000
    assert pushed["in"] > 3_000_000
    assert {cloned["target"], pushed["target"]} == {f"tcp://127.0.0.1:{port}"}


@pytest.mark.root
@pytest.mark.tool("git", "sshd", "ssh", "ssh-keygen", "unshare")
def test_git_clones_and_pushes_over_ssh(start_superd: Start, project: Path, tmp_path: Path) -> None:
    port = free_port()
    ssh = Ssh(tmp_path)
    with running(*ssh.server, "-D", f"-oListenAddress=127.0.0.1:{port}", port=port):
        served = forward(start_superd, f"tcp://127.0.0.1:{port}")
        base = f"ssh://root@{host_and_port(served)}{project.parent}"
        env = {"GIT_SSH_COMMAND": shlex.join(ssh.client), "GIT_SSH_VARIANT": "ssh"}
        check_clone_and_push(project, tmp_path / "clone", base, env)
        cloned, pushed = closed_records(served, 2)
    assert cloned["out"] > 2_000_000
    assert pushed["in"] > 3_000_000
    assert {cloned["end"], pushed["end"]} <= {"client", "server"}


# openssl


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    key, cert = str(tmp_path / "key"), str(tmp_path / "cert")
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
    more = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    output("openssl", *command.split(), *more, "-keyout", key, "-out", cert)
    return key, cert


@pytest.mark.tool("openssl", "curl")
def test_tls_is_end_to_end(
    start_superd: Start, certificate: tuple[str, str], tmp_path: Path
) -> None:
    port = free_port()
    key, cert = certificate
    (tmp_path / "large").write_bytes(random_bytes(LARGE))
    command = ["openssl", "s_server", "-quiet", "-WWW", "-key", key, "-cert", cert]
    served = forward(start_superd, f"tcp://127.0.0.1:{port}")
    _, own = served.address("forward")
    with running(*command, "-accept", f"127.0.0.1:{port}", port=port, cwd=tmp_path):
        got = output(
            *CURL, "--cacert", cert, "--resolve", f"localhost:{own}:127.0.0.1",
            f"https://localhost:{own}/large",
        )  # fmt: skip
        assert digest(got) == digest(random_bytes(LARGE))
        client = ["openssl", "s_client", "-connect", f"127.0.0.1:{own}", "-servername", "localhost"]
        client += ["-CAfile", cert, "-verify_return_error", "-quiet"]
        printed = output_for_input(b"GET /large HTTP/1.0\r\n\r\n", *client)
    assert digest(printed.partition(b"\r\n\r\n")[2]) == digest(random_bytes(LARGE))
    for event in closed_records(served, 2):
        assert event["out"] > LARGE


# socat and ncat


@pytest.mark.tool("socat", "ncat")
@pytest.mark.parametrize("client", ["socat", "ncat"])
@pytest.mark.parametrize("server", ["socat", "ncat"])
def test_socat_and_ncat_send_each_other_files(
    start_superd: Start, tmp_path: Path, client: str, server: str
) -> None:
    port = free_port()
    served = forward(start_superd, f"tcp://127.0.0.1:{port}")
    _, own = served.address("forward")
    paths = [tmp_path / name for name in ("there", "back", "received", "got")]
    paths[0].write_bytes(random_bytes(LARGE))
    paths[1].write_bytes(random_bytes(LARGE + 1))
    servers = {
        "socat": ("socat", "-t", "60", "-", f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr"),
        "ncat": ("ncat", "-l", "127.0.0.1", str(port)),
    }
    clients = {
        "socat": ("socat", "-t", "60", "-", f"TCP:127.0.0.1:{own}"),
        "ncat": ("ncat", "127.0.0.1", str(own)),
    }
    there, back, received, got = paths
    with (
        back.open("rb") as answer,
        received.open("wb") as sink,
        running(*servers[server], port=port, stdin=answer, stdout=sink) as target,
    ):
        with there.open("rb") as question, got.open("wb") as end:
            subprocess.run(
                clients[client], stdin=question, stdout=end, timeout=CLIENT_TIMEOUT, check=True
            )
        assert target.wait(CLIENT_TIMEOUT) == 0
    assert digest(received.read_bytes()) == digest(random_bytes(LARGE))
    assert digest(got.read_bytes()) == digest(random_bytes(LARGE + 1))
    closed = only_record(served)
    assert (closed["in"], closed["out"]) == (LARGE, LARGE + 1)
    assert closed["target"] == f"tcp://127.0.0.1:{port}"
    assert closed["end"] in ("client", "server")


@pytest.mark.tool("socat")
def test_socat_gets_a_digest_after_its_half_close(start_superd: Start, tmp_path: Path) -> None:
    port = free_port()
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork"
    with running("socat", "-t", "60", listen, "EXEC:sha256sum", port=port):
        served = forward(start_superd, f"tcp://127.0.0.1:{port}")
        digest_line = output_for_input(
            random_bytes(LARGE), "socat", "-t", "60", "-", f"TCP:{host_and_port(served)}"
        )
        closed = only_record(served)
    assert digest_line.split()[0].decode() == digest(random_bytes(LARGE))
    assert (closed["in"], closed["out"], closed["end"]) == (LARGE, len(digest_line), "client")


@pytest.mark.tool("socat")
def test_socat_sends_datagrams(start_superd: Start) -> None:
    port = free_port()
    command = ["socat", f"UDP-RECVFROM:{port},bind=127.0.0.1,fork", "EXEC:sha256sum"]
    with running(*command, port=port, protocol="udp"):
        served = forward(
            start_superd, f"udp://127.0.0.1:{port}", "udp://127.0.0.1:0",
            more="datagram-replies = 1",
        )  # fmt: skip
        digest_line = output_for_input(
            random_bytes(1000), "socat", "-t", "1", "-", f"UDP:{host_and_port(served, 'udp')}"
        )
        closed = only_record(served)
    assert digest_line.split()[0].decode() == digest(random_bytes(1000))
    assert (closed["in"], closed["out"], closed["end"]) == (1000, len(digest_line), "server")
