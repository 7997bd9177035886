"""The privileged master never reads from a client and never runs the code of a plugin."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support import proc
from tests.support.harness import EVENT_TIMEOUT, ask_udp, exchange, make_plugin


@pytest.mark.root
@pytest.mark.tool("strace")
def test_the_master_never_reads_from_a_client_and_never_runs_plugin_code(
    start_superd: Start, tmp_path: Path
) -> None:
    noting = """
        import os
        from pathlib import Path
        from superd.plugin import Service, hookimpl

        (Path(__file__).parent / f"imported-by-{os.getpid()}").touch()

        class Noting(Service):
            name = "noting"

            def respond(self, request):
                return b"noted"

        @hookimpl
        def superd_services():
            return [Noting]
    """
    trace = tmp_path / "trace"
    toml = f"""
        [service.noting]
        plugin = "noting"
        listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]
        amplify = true
        [service.echo]
        plugin = "echo"
        listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0", "unix://{tmp_path}/echo"]
        [service.message]
        plugin = "message"
        listen = "tcp://127.0.0.1:0"
        """
    calls = "trace=network,read,readv,recvmmsg"
    superd = start_superd(
        toml,
        *("strace", "-f", "-yy", "-o", str(trace), "-e", calls),
        env=make_plugin(tmp_path / "plugins", "noting", noting),
    )
    for _ in range(3):
        assert exchange(superd.connect("echo"), b"a client's bytes") == b"a client's bytes"
        assert exchange(superd.connect("noting"), b"") == b"noted"
        assert exchange(superd.connect("message"), b"hello\n")
        assert ask_udp(superd.address("echo", "udp"), b"hello") == b"hello"
        assert ask_udp(superd.address("noting", "udp"), b"?") == b"noted"
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(EVENT_TIMEOUT)
            client.connect(f"{tmp_path}/echo")
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
    master, workers = superd.pid, proc.children(superd.pid)
    assert len(proc.threads(master)) == 1
    assert superd.stop() == 0

    lines = trace.read_text().splitlines()
    reads = [line for line in lines if _reads_from_a_client(line)]
    by_process = {int(line.split()[0]) for line in reads}
    assert by_process & set(workers), "the trace does not show the reads of workers"
    assert master not in by_process, [line for line in reads if line.startswith(f"{master} ")]
    imported = {int(file.name.rpartition("-")[2]) for file in (tmp_path / "plugins").glob("imp*")}
    assert imported & set(workers)
    assert master not in imported


def _reads_from_a_client(line: str) -> bool:
    """Return whether a line of strace accepts or reads from a service's socket or connection."""
    call = line.partition(" ")[2].lstrip().partition("(")
    reading = ("accept", "accept4", "read", "readv", "recvfrom", "recvmsg", "recvmmsg")
    subject = call[2].partition(",")[0]
    of_service = any(mark in subject for mark in ("<TCP:", "<UDP:", "<TCPv6:", "/echo"))
    return call[0] in reading and of_service
