"""A handler that blocks the event loop is logged, and a worker that hangs is replaced."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import receive_to_end
from tests.support.harness import Superd, exchange, make_plugin, until

BLOCK = """
    import contextlib, itertools, os, signal, socket, time
    from superd.plugin import Service, hookimpl

    class Block(Service):
        name = "block"

        async def stream(self, conn):
            async for line in conn:
                await conn.send(b"now: ")
                getattr(self, line.decode().strip())()
                await conn.send(line)

        def sleep(self):
            time.sleep(0.6)

        def spin(self):
            end = time.thread_time() + 0.6
            while time.thread_time() < end:
                pass

        def hold(self):
            # one call that holds the GIL, long enough on a machine of any speed
            number, took = 1 << 20, 0.0
            while took < 0.6:
                number, began = number * 2, time.thread_time()
                sum(range(number))
                took = time.thread_time() - began

        def sleep_on(self):
            time.sleep(3600)

        def spin_on(self):
            while True:
                pass

        def hold_on(self):
            sum(itertools.repeat(0))

        def forge(self):
            # a forged stack, written to every socket until its buffer is full
            forged = b"Stack (most recent call first):\\n"
            forged += b'  File "/etc/passwd", line 1 in \\x1b[2J\\n'
            forged = forged.ljust(128, b"\\n")  # divides the master's read size
            for number in range(3, 100):
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as sock:
                    if (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_STREAM):
                        sock.send(forged * 1000, socket.MSG_DONTWAIT)
            self.spin_on()

        def make_blocking(self):
            # makes every descriptor that the master might read from blocking, and writes nothing
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            for number in range(3, 100):
                with contextlib.suppress(OSError):
                    os.set_blocking(number, True)
            self.sleep_on()

        def nothing(self):
            pass

    @hookimpl
    def superd_services():
        return [Block]
"""

BLOCKS = [("sleep", "time.sleep(0.6)"), ("spin", ""), ("hold", "sum(range(number))")]

TOML = """
[daemon]
loop = "{loop}"
watchdog = "{watchdog}"

[service.block]
plugin = "block"
listen = "tcp://127.0.0.1:0"

[service.echo]
plugin = "echo"
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]
"""

OTHER = """
[service.other]
plugin = "block"
listen = "tcp://127.0.0.1:0"
pool = "other"
"""


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return make_plugin(tmp_path / "plugins", "block", BLOCK)


def standstills(superd: Superd) -> list[str]:
    """Return the log lines about standstills."""
    return [line for line in superd.log().splitlines() if "was blocked for" in line]


@pytest.mark.parametrize(("act", "line"), BLOCKS, ids=[act for act, _ in BLOCKS])
def test_a_handler_that_blocks_is_logged_with_its_stack(
    start_superd: Start, env: dict[str, str], loop: str, act: str, line: str
) -> None:
    superd = start_superd(TOML.format(loop=loop, watchdog="30s"), env=env)
    assert exchange(superd.connect("block"), b"nothing\n") == b"now: nothing\n"
    assert not standstills(superd)
    assert exchange(superd.connect("block"), f"{act}\n".encode()) == f"now: {act}\n".encode()
    found = superd.wait_for_log(
        r"superd\[(\d+)\] warning: the event loop was blocked for (\d+\.\d\d) s or more, "
        rf"in plugin superd_block\.py:\d+, {act} service=block\n"
    )
    assert int(found[1]) in superd.workers()
    assert 0.15 <= float(found[2]) < 15
    detail = superd.log()[found.end() :]
    assert re.search(rf'\|   File "[^"]*/superd_block\.py", line \d+, in {act}\n', detail)
    assert line in detail
    assert "worker.py" not in detail  # every stack has these frames, so they are left out


def test_a_second_block_of_the_same_connection_is_logged(
    start_superd: Start, env: dict[str, str], loop: str
) -> None:
    superd = start_superd(TOML.format(loop=loop, watchdog="30s"), env=env)
    with superd.connect("block") as client:
        client.sendall(b"sleep\n")
        superd.wait_for_log("was blocked for")
        client.sendall(b"sleep\n")
        until(lambda: len(standstills(superd)) == 2, "another line")


@pytest.mark.parametrize("act", ["sleep_on", "spin_on", "hold_on"])
def test_a_worker_that_hangs_is_replaced_and_no_client_is_refused(
    start_superd: Start, env: dict[str, str], loop: str, act: str
) -> None:
    superd = start_superd(TOML.format(loop=loop, watchdog="1s"), env=env)
    (worker,) = superd.workers()
    with superd.connect("block") as stuck:
        stuck.sendall(f"{act}\n".encode())
        assert stuck.recv(5) == b"now: "
        assert exchange(superd.connect("echo"), b"waited") == b"waited"
        assert receive_to_end(stuck)[0] == b""
    place = rf"in plugin superd_block\.py:\d+, {act}"
    found = superd.wait_for_log(
        rf"error: the event loop of worker {worker} is blocked for [\d.]+ s, {place}; "
        r"superd ends it service=block\n"
        r".*\| Stack \(most recent call last\):\n"
    )
    assert re.search(rf"superd_block\.py\", line \d+, in {act}\n", superd.log()[found.end() :])
    superd.wait_for_log(
        rf"error: worker {worker} of pool \S+ was ended by SIGKILL: "
        rf"its event loop was blocked, {place}; "
        "1 connections were lost with it; its successor starts now\n"
    )
    assert worker not in superd.workers()
    assert exchange(superd.connect("block"), b"nothing\n") == b"now: nothing\n"


def test_a_worker_that_forges_its_stack_does_not_harm_the_master(
    start_superd: Start, env: dict[str, str]
) -> None:
    superd = start_superd(TOML.format(loop="auto", watchdog="1s"), env=env)
    with superd.connect("block") as hostile:
        hostile.sendall(b"forge\n")
        superd.wait_for_log(r"is blocked for .*, in /etc/passwd:1, \\x1b\[2J; superd ends it\n")
    assert exchange(superd.connect("echo"), b"on") == b"on"
    assert "root:" not in superd.log()


def test_a_worker_that_hangs_cannot_block_the_master(
    start_superd: Start, env: dict[str, str]
) -> None:
    superd = start_superd(TOML.format(loop="auto", watchdog="1s"), env=env)
    with superd.connect("block") as hostile:
        hostile.sendall(b"make_blocking\n")
        superd.wait_for_log(r"is blocked for .*, at an unknown place; superd ends it\n")
    assert exchange(superd.connect("echo"), b"on") == b"on"


def test_a_block_of_a_plugin_is_logged_with_all_its_services(
    start_superd: Start, env: dict[str, str]
) -> None:
    more = '[service.more]\nplugin = "block"\nlisten = "tcp://127.0.0.1:0"\n'
    superd = start_superd(TOML.format(loop="auto", watchdog="30s") + more, env=env)
    assert exchange(superd.connect("more"), b"sleep\n") == b"now: sleep\n"
    superd.wait_for_log(r"superd_block\.py:\d+, sleep, of services block, more\n")


def test_the_watchdog_does_not_end_a_stopped_worker(
    start_superd: Start, env: dict[str, str], loop: str
) -> None:
    superd = start_superd(TOML.format(loop=loop, watchdog="1s") + OTHER, env=env)
    (stopped,) = set(superd.workers()) - set(superd.workers("other"))
    os.kill(stopped, signal.SIGSTOP)
    try:
        with superd.connect("other") as stuck:  # another worker hangs until the watchdog ends it
            stuck.sendall(b"sleep_on\n")
            superd.wait_for_log("its successor starts now")
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert exchange(superd.connect("echo"), b"on") == b"on"
    assert stopped in superd.workers()
    assert not [line for line in standstills(superd) if str(stopped) in line]


@pytest.mark.parametrize("model", ["fork", "prefork"])
def test_a_process_of_a_handler_may_block_and_has_no_timer(
    start_superd: Start, tmp_path: Path, model: str
) -> None:
    source = """
        import signal, time
        from superd.plugin import Service, hookimpl

        class Patient(Service):
            name = "patient"

            def stream(self, conn):
                time.sleep(0.6)
                handler = signal.getsignal(signal.SIGALRM)
                conn.send(f"{handler!r} {signal.getitimer(signal.ITIMER_REAL)}".encode())

        @hookimpl
        def superd_services():
            return [Patient]
    """
    toml = f"""
        [daemon]
        watchdog = "1s"

        [service.patient]
        plugin = "patient"
        model = "{model}"
        listen = "tcp://127.0.0.1:0"
    """
    superd = start_superd(toml, env=make_plugin(tmp_path / "plugins", "patient", source))
    answer = exchange(superd.connect("patient"), b"")
    assert answer == f"{signal.SIG_DFL!r} (0.0, 0.0)".encode()
    assert not standstills(superd)


def test_the_watchdog_needs_no_thread_in_the_worker(
    start_superd: Start, env: dict[str, str], loop: str
) -> None:
    superd = start_superd(TOML.format(loop=loop, watchdog="30s"), env=env)
    (worker,) = superd.workers()
    assert len(os.listdir(f"/proc/{worker}/task")) == 1


@pytest.mark.soak
def test_without_a_watchdog_a_worker_that_hangs_is_only_logged(
    start_superd: Start, env: dict[str, str]
) -> None:
    superd = start_superd(TOML.format(loop="auto", watchdog="0s"), env=env)
    (worker,) = superd.workers()
    with superd.connect("block") as stuck:
        stuck.sendall(b"spin_on\n")
        superd.wait_for_log(
            rf"the event loop of worker {worker} is blocked for .*"
            " watchdog is off, so it is not ended service=block"
        )
        assert superd.workers() == [worker]
