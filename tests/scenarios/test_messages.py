"""Workers that send the master malformed or excessive messages: only they are ended."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from tests.support import proc
from tests.support.harness import Superd, make_plugin, until

SERVICES = """
[service.hostile]
plugin = "hostile"
listen = "tcp://127.0.0.1:0"

[service.other]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
pool = "other"
"""

HOSTILE = """
    import array, json, os, signal, socket, stat
    from superd.plugin import Service, hookimpl

    def line():
        "The worker's channel to the master: its only SEQPACKET socket."
        for number in map(int, os.listdir("/proc/self/fd")):
            try:
                sock = socket.socket(fileno=os.dup(number))
            except OSError:
                continue
            if sock.type == socket.SOCK_SEQPACKET:
                sock.setblocking(True)
                return sock
            sock.close()

    LOG = {"kind": "log", "level": "info", "message": "flood", "service": "", "connection": "",
           "peer": "", "pid": 1, "time": 1.0, "detail": []}

    class Hostile(Service):
        name = "hostile"

        async def stream(self, conn):
            act = (await conn.readline()).decode().strip()
            await getattr(self, act)(line(), conn)

        async def many(self, line, conn):
            "Valid messages, as fast as possible, from a process without an event loop."
            if os.fork() == 0:
                for _ in range(20_000):
                    line.send(json.dumps(LOG).encode())
                os._exit(0)
            await conn.send(b"done")

        async def with_files(self, line, conn):
            passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 100))]
            for _ in range(50):
                line.sendmsg([json.dumps(LOG).encode()], passed)
            await conn.send(b"done")

        async def random(self, line, conn):
            line.send(os.urandom(1000))

        async def deep(self, line, conn):
            line.send(b"[" * 60_000)

        async def empty(self, line, conn):
            line.send(b"")

        async def long(self, line, conn):
            line.send(b'{"kind": "' + b"x" * 150_000 + b'"}')

        async def unknown(self, line, conn):
            line.send(b'{"kind": "reboot"}')

        async def unkind(self, line, conn):
            line.send(b"{}")

        async def types(self, line, conn):
            line.send(json.dumps({**LOG, "time": "noon", "detail": 5}).encode())

        async def code(self, line, conn):
            line.send(b'{"kind": "failed", "exit_code": 12345, "text": "x"}')

        async def hangup(self, line, conn):
            line.shutdown(socket.SHUT_WR)

    @hookimpl
    def superd_services():
        return [Hostile]
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Superd]:
    """A superd with a plugin that sends its own messages to the master, and a second pool."""
    directory = tmp_path_factory.mktemp("superd")
    env = make_plugin(directory / "plugins", "hostile", HOSTILE)
    instance = Superd(directory, SERVICES, env=env)
    try:
        yield instance.start()
    finally:
        instance.stop()
        print(f"--- log of {instance.file}\n{instance.log()[-2000:]}")


def successor(superd: Superd, victim: int, pool: str) -> int:
    """Wait for the worker that replaces the victim; return its pid."""
    found = until(lambda: [pid for pid in superd.workers(pool) if pid != victim], "a successor")
    return found[0]


def request(superd: Superd, act: str) -> bytes:
    with superd.connect("hostile") as client:
        client.sendall(f"{act}\n".encode())
        try:
            return client.recv(100)
        except ConnectionError:
            return b""


@pytest.mark.parametrize(
    "act",
    ["random", "deep", "empty", "long", "unknown", "unkind", "types", "code", "hangup"],
)
def test_a_worker_that_sends_an_invalid_message_is_replaced_and_no_other_worker(
    hostile: Superd, act: str
) -> None:
    pool = hostile.answer()["services"][0]["pool"]
    (victim,), (bystander,) = hostile.workers(pool), hostile.workers("other")
    with hostile.connect("other") as neighbour:
        request(hostile, act)
        successor(hostile, victim, pool)
        neighbour.sendall(b"still here")
        assert neighbour.recv(100) == b"still here"
    assert hostile.workers("other") == [bystander]
    why = "was ended by SIGKILL: it closed its channel to the master"
    assert re.search(rf"worker {victim} of pool {pool} {why}", hostile.log())


def test_a_flood_of_messages_is_throttled_and_uses_no_memory_of_the_master(
    hostile: Superd,
) -> None:
    master = hostile.pid
    before, open_before = proc.memory(master), len(proc.descriptors(master))
    lines = hostile.log().count("\n")
    started = time.monotonic()
    assert request(hostile, "many") == b"done"
    with hostile.connect("other") as neighbour:
        for _ in range(200):
            neighbour.sendall(b"x")
            assert neighbour.recv(1) == b"x"
            assert hostile.answer()["state"] == "serving"
    until(lambda: hostile.log().count("\n") > lines, "the first of the flood in the log")
    took = time.monotonic() - started
    written = hostile.log().count("\n") - lines
    assert 0 < written < 2 * 512 * (took / 0.4 + 2)  # twice the allowance
    assert proc.memory(master) - before < 4096
    assert request(hostile, "with_files") == b"done"
    assert len(proc.descriptors(master)) <= open_before + 1
    assert len(proc.threads(master)) == 1
    forged = [line for line in hostile.log().splitlines() if "superd[1]" in line]
    assert not forged, "a worker logs as another process"
