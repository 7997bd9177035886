"""What plugins print, warn and log by Python's own means is in superd's log, not lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.harness import Superd, exchange, make_plugin, until, whole_lines

# Does what the client's line names: in a coroutine, or in a thread or process of its own.
NOISY = """
    import asyncio, ctypes, faulthandler, gc, logging, os, subprocess, sys, threading, traceback
    import warnings
    from superd.plugin import BlockingConnection, Connection, Service, hookimpl

    async def forgotten():
        pass

    class Loud:
        def __str__(self):
            logging.warning("logged as it is shown")
            print("printed as it is shown")
            return "shown"

    class Base(Service):
        def prepare(self): print("printed in prepare")
        def start(self): logging.getLogger("lib").warning("logged in start")
        def close(self): print("printed in close")

        def act(self, word): getattr(self, word)()
        def printed(self): print("printed", end=""); print(" on a line"); print("a part", end="")
        def error(self): print("on standard error", file=sys.stderr)
        def escaped(self): print("red \\x1b[31m caf\\xe9 2026-12-01 superd[1] info: forged")
        def long(self): print("x" * 100_000)
        def logged(self): logging.getLogger("lib").info("told %s", "so")
        def failed(self):
            try: 1 / 0
            except ZeroDivisionError: logging.exception("it failed")
        def trace(self):
            try: 1 / 0
            except ZeroDivisionError: traceback.print_exc()
        def mistake(self): logging.error("%d", "no number")
        def debug(self): logging.debug("in detail")
        def warned(self): warnings.warn("mind the gap")
        def unawaited(self): forgotten(); gc.collect()
        def raw(self): os.write(1, b"by descriptor\\n")
        def libc(self): libc = ctypes.CDLL(None); libc.puts(b"by the C library"); libc.fflush(None)
        def binary(self): sys.stdout.buffer.write(b"by its buffer\\n")
        def program(self): subprocess.run(["sh", "-c", "echo by a program >&2"])
        def stack(self): faulthandler.dump_traceback()
        def thread(self):
            work = threading.Thread(target=print, args=("by a thread",))
            work.start(); work.join()
        def flood(self):
            for number in range(20_000): print("line", number)
        def pipe(self):
            for number in range(20_000): os.write(2, b"raw line\\n")
        def loud(self): logging.warning("%s", Loud())
        def finalizer(self):
            class Last:
                def __del__(self): print("by a finalizer")
            Last()
        def crash(self): os.write(2, b"last words"); os.kill(os.getpid(), 11)

    class Noisy(Base):
        name = "noisy"
        async def stream(self, conn: Connection):
            async for line in conn:
                try: self.act(line.decode().strip())
                except BlockingIOError: pass
                await conn.send(b"done\\n")

    class Blocks(Base):
        name = "blocks"
        def stream(self, conn: BlockingConnection):
            for line in conn:
                try: self.act(line.decode().strip())
                except BlockingIOError: pass
                conn.send(b"done\\n")

    @hookimpl
    def superd_services():
        return [Noisy, Blocks]
"""

TOML = """
[daemon]
log = ["{log}"]
log-format = "json"

[service.first]
plugin = "noisy"
listen = "tcp://127.0.0.1:0"

[service.second]
plugin = "noisy"
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
processes = 1
"""

SERVICES = ("first", "second", "thread", "fork", "prefork")
Line = dict[str, str]


class Noise:
    """A superd with noisy plugins, and its log."""

    def __init__(self, superd: Superd, log: Path) -> None:
        self.superd = superd
        self.log = log

    def make(self, service: str, word: str) -> None:
        done = exchange(self.superd.connect(service), f"{word}\n".encode())
        assert done == b"done\n"

    def lines(self) -> list[Line]:
        return [json.loads(line) for line in whole_lines(self.log).splitlines()]

    def wait_for(self, level: str, pattern: str, service: str | None) -> Line:
        """Wait for a line of a service, or one whose service is not known."""

        def found() -> Line | None:
            return next(
                (
                    one
                    for one in self.lines()
                    if one["level"] == level
                    and re.fullmatch(pattern, one["message"])
                    and service in (None, one.get("service"))
                ),
                None,
            )

        return until(found, f"{pattern!r} at level {level} of {service}")


@pytest.fixture
def noise(start_superd: Start, tmp_path: Path) -> Noise:
    env = make_plugin(tmp_path / "plugins", "noisy", NOISY)
    entry_points = tmp_path / "plugins" / "superd_noisy-1.0.dist-info" / "entry_points.txt"
    entry_points.write_text("[superd]\nnoisy = superd_noisy\nblocks = superd_noisy\n")
    log = tmp_path / "log"
    return Noise(start_superd(TOML.replace("{log}", str(log)), env=env), log)


IN_PYTHON = [
    ("printed", "info", "printed on a line"),
    ("error", "warning", "on standard error"),
    ("logged", "info", "lib: told so"),
    ("failed", "error", "it failed"),
    ("trace", "warning", "ZeroDivisionError: division by zero"),
    ("mistake", "error", "root: a message cannot be formatted: TypeError: .*"),
    ("warned", "warning", ".*superd_noisy.py:[0-9]+: UserWarning: mind the gap"),
    ("unawaited", "warning", ".*RuntimeWarning: coroutine 'forgotten' was never awaited"),
    ("finalizer", "info", "(a part)?by a finalizer"),
]
BY_DESCRIPTOR = [
    ("raw", "by descriptor"),
    ("libc", "by the C library"),
    ("binary", "by its buffer"),
    ("program", "by a program"),
    ("stack", r"Current thread 0x.* \(most recent call first\):"),
]


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_handler_prints_warns_and_logs_is_logged_for_its_service(
    noise: Noise, service: str
) -> None:
    for word, level, pattern in IN_PYTHON:
        noise.make(service, word)
        noise.wait_for(level, pattern, service)
    [failure] = [line for line in noise.lines() if line["message"] == "it failed"]
    assert failure["detail"][-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("service", SERVICES)
def test_what_is_written_to_descriptors_is_logged(noise: Noise, service: str) -> None:
    for word, pattern in BY_DESCRIPTOR:
        noise.make(service, word)
        noise.wait_for("warning", pattern, None)


def test_the_other_steps_of_a_plugin_are_logged_for_their_service(noise: Noise) -> None:
    noise.make("first", "thread")
    noise.wait_for("info", "by a thread", None)
    noise.superd.run("stop")
    for service in SERVICES:
        noise.wait_for("info", "printed in prepare", service)
        noise.wait_for("warning", "lib: logged in start", service)
        noise.wait_for("info", "printed in close", service)


def test_output_cannot_forge_a_line_and_is_cut(noise: Noise) -> None:
    noise.make("first", "escaped")
    noise.make("first", "long")
    noise.wait_for("info", r"red \x1b\[31m café 2026-12-01 superd\[1\] info: forged", "first")
    noise.wait_for("info", r"x{2045}\.\.\.", "first")


def test_the_log_level_decides_for_output_as_well(noise: Noise) -> None:
    noise.make("first", "debug")
    assert noise.superd.run("log-level", "debug").returncode == 0

    def has_told() -> bool:
        noise.make("first", "debug")
        return any(line["message"] == "in detail" for line in noise.lines())

    until(has_told, "a line of level debug")
    assert noise.superd.run("log-level", "error").returncode == 0
    number = len(noise.lines())
    for word in ("printed", "error", "warned", "raw"):
        noise.make("first", word)
    noise.make("first", "failed")
    noise.wait_for("error", "it failed", "first")
    assert [line["level"] for line in noise.lines()[number:]] == ["error"]


@pytest.mark.parametrize("service", ["first", "thread", "fork"])
def test_a_flood_is_folded_and_delays_no_client(noise: Noise, service: str) -> None:
    for word in ("flood", "pipe"):
        noise.make(service, word)
        noise.make("second", "logged")
    noise.wait_for("info", "lib: told so", "second")
    assert len([line for line in noise.lines() if line["message"].startswith("line ")]) < 2000
    assert len([line for line in noise.lines() if line["message"] == "raw line"]) < 2000


def test_code_that_logs_while_it_is_logged_does_not_recurse(noise: Noise) -> None:
    noise.make("first", "loud")
    noise.wait_for("warning", "shown", "first")
    noise.wait_for("warning", "logged as it is shown", "first")
    noise.wait_for("info", "printed as it is shown", "first")


def test_the_last_words_of_a_worker_that_crashes_are_logged(noise: Noise) -> None:
    with noise.superd.connect("first") as client:
        client.sendall(b"crash\n")
        noise.wait_for("warning", "last words", None)


def test_output_is_logged_after_an_upgrade_of_superd(noise: Noise) -> None:
    with noise.superd.connect("first") as client:
        client.sendall(b"printed\n")
        assert client.recv(5) == b"done\n"
        assert noise.superd.run("upgrade").returncode == 0
        client.sendall(b"raw\n")
        assert client.recv(5) == b"done\n"
        noise.wait_for("warning", "by descriptor", None)
