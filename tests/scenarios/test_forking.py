"""Plugins that fork, by themselves or with multiprocessing, in every model and with every loop."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support import seccomp
from tests.support.harness import Superd, exchange, make_plugin

# Does what the client's line names, in a coroutine or with blocking calls.
FORKS = """
    import asyncio, multiprocessing, multiprocessing.pool, multiprocessing.queues
    import multiprocessing.synchronize, os, signal
    from superd.plugin import BlockingConnection, Connection, Service, hookimpl

    def double(number):
        return 2 * number

    def pipes():
        made = [os.pipe() for _ in range(8)]
        if os.fork() == 0:
            for _, writer in made:
                os.write(writer, b"x")
            os._exit(0)
        os.wait()
        for _, writer in made:
            os.close(writer)
        read = [os.read(reader, 9) for reader, _ in made]
        for reader, _ in made:
            os.close(reader)
        return all(data == b"x" for data in read)

    def pool(method):
        with multiprocessing.get_context(method).Pool(3) as workers:
            return workers.map(double, range(5)) == [0, 2, 4, 6, 8]

    def fork():
        return pool("fork")

    def spawn():
        return pool("spawn")

    def term():
        child = os.fork()
        if child == 0:
            while True:
                signal.pause()
        os.kill(child, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM

    async def polled():
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        reader, writer = os.pipe()
        loop.add_reader(reader, readable.set)
        if os.fork() == 0:
            loop.remove_reader(reader)
            os._exit(0)
        os.wait()
        os.write(writer, b"x")
        await readable.wait()
        loop.remove_reader(reader)
        return os.read(reader, 9) == b"x"

    class Forks(Service):
        name = "forks"

        async def stream(self, conn: Connection):
            async for line in conn:
                word = line.decode().strip()
                done = await polled() if word == "polled" else globals()[word]()
                await conn.send(repr(done).encode() + b"\\n")

    class Blocks(Service):
        name = "blocks"

        def stream(self, conn: BlockingConnection):
            for line in conn:
                conn.send(repr(globals()[line.decode().strip()]()).encode() + b"\\n")

    @hookimpl
    def superd_services():
        return [Forks, Blocks]
"""

TOML = """
[daemon]
loop = "{loop}"
watchdog = "1m"

[defaults]
{defaults}

[service.loop]
plugin = "forks"
listen = "tcp://127.0.0.1:0"

[service.thread]
plugin = "blocks"
listen = "tcp://127.0.0.1:0"
model = "thread"

[service.fork]
plugin = "blocks"
listen = "tcp://127.0.0.1:0"
model = "fork"

[service.prefork]
plugin = "blocks"
listen = "tcp://127.0.0.1:0"
model = "prefork"
"""

MODELS = ("loop", "thread", "fork", "prefork")


@pytest.fixture(params=["uvloop", "asyncio"])
def served(request: pytest.FixtureRequest, start_superd: Start, tmp_path: Path) -> Superd:
    env = make_plugin(tmp_path / "plugins", "forks", FORKS)
    entry_points = tmp_path / "plugins" / "superd_forks-1.0.dist-info" / "entry_points.txt"
    entry_points.write_text("[superd]\nforks = superd_forks\nblocks = superd_forks\n")
    # spawned processes read Python's files, which another user may not be able to
    defaults = 'user = "root"' if os.geteuid() == 0 else ""
    toml = TOML.format(loop=request.param, defaults=defaults)
    return start_superd(toml, env=env)


@pytest.mark.parametrize("model", MODELS)
def test_descriptors_of_a_handler_survive_its_forks(served: Superd, model: str) -> None:
    for _ in range(3):  # also in a process that has served before
        assert exchange(served.connect(model), b"pipes\npipes\n") == b"True\nTrue\n"


@pytest.mark.parametrize("model", MODELS)
def test_pools_of_processes_work_and_harm_no_worker(served: Superd, model: str) -> None:
    workers = served.workers()
    assert exchange(served.connect(model), b"fork\nfork\nspawn\n") == b"True\nTrue\nTrue\n"
    assert served.workers() == workers
    assert "ended with code" not in served.log()


@pytest.mark.parametrize("model", MODELS)
def test_a_signal_ends_the_forked_process_and_not_the_worker(served: Superd, model: str) -> None:
    workers = served.workers()
    assert exchange(served.connect(model), b"term\nterm\n") == b"True\nTrue\n"
    assert served.workers() == workers


def test_a_forked_process_that_stops_polling_does_not_stop_the_worker(served: Superd) -> None:
    assert exchange(served.connect("loop"), b"polled\npolled\n") == b"True\nTrue\n"


def without_close_range(errno_: int) -> list[str]:
    """Return the start of a command line under which close_range(2) fails."""
    return [sys.executable, seccomp.__file__, str(errno_), str(seccomp.CLOSE_RANGE)]


PROBE = """
    import os, resource
    from superd.plugin import BlockingConnection, Service, hookimpl

    class Probe(Service):
        name = "probe"

        def start(self):
            self.files = [os.dup(0) for _ in range(300)]

        def stream(self, conn: BlockingConnection):
            left = sum(is_open(number) for number in self.files)
            conn.send(f"{left} of {len(self.files)}".encode())

    def is_open(number):
        try:
            return os.fstat(number).st_ino >= 0
        except OSError:
            return False

    @hookimpl
    def superd_services():
        return [Probe]
"""


@pytest.mark.parametrize("model", ["fork", "prefork"])
@pytest.mark.parametrize("errno_", [errno.ENOSYS, errno.EPERM])
@pytest.mark.parametrize("is_jailed", [False, pytest.param(True, marks=pytest.mark.root)])
def test_processes_start_without_close_range(
    start_superd: Start, tmp_path: Path, model: str, errno_: int, is_jailed: bool
) -> None:
    jail = tmp_path / "jail"
    jail.mkdir()
    chroot = f'chroot = "{jail}"\n' if is_jailed else ""
    superd = start_superd(
        f'[service.probe]\nplugin = "probe"\nlisten = "tcp://127.0.0.1:0"\nmodel = "{model}"\n'
        + chroot,
        *without_close_range(errno_),
        env=make_plugin(tmp_path / "plugins", "probe", PROBE),
    )
    for _ in range(3):
        assert exchange(superd.connect("probe"), b"") == b"0 of 300"
