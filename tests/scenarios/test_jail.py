"""Services in an empty jail: they answer, log their errors with source lines, and end cleanly."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import connect_and_receive
from tests.support.harness import (
    EVENT_TIMEOUT,
    Superd,
    exchange,
    is_alive,
    make_plugin,
    until,
)
from tests.support.inside import INSIDE, run_inside
from tests.support.jails import (
    FAILING,
    QUOTE,
    RESET,
    all_plugins,
    over_tcp,
    over_udp,
    over_unix,
    services_late_and_early,
    start_of_chargen,
)

PATTERN = b"".join((bytes(range(0x20, 0x7F)) * 2)[n : n + 72] + b"\r\n" for n in range(95))


@pytest.mark.root
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_every_bundled_plugin_answers_over_every_transport_in_an_empty_jail(
    start_superd: Start, tmp_path: Path, jail: Path, loop: str
) -> None:
    superd = start_superd(all_plugins(jail, tmp_path, loop))
    message = "there is no message yet"
    for ask in (over_tcp, over_udp, over_unix):
        assert ask(superd, "echo", b"hello") == b"hello"
        assert ask(superd, "discard", b"hello") == b""
        assert ask(superd, "qotd", b"") == QUOTE + b"\r\n"
        daytime = ask(superd, "daytime", b"").decode().strip()
        assert abs(time.mktime(time.strptime(daytime)) - time.time()) < EVENT_TIMEOUT
        seconds = int.from_bytes(ask(superd, "time", b""))
        assert abs(seconds - 2_208_988_800 - time.time()) < EVENT_TIMEOUT
        assert ask(superd, "message", ask.__name__.encode()).decode().strip() == message
        host = "localhost" if ask is over_unix else "127.0.0.1"
        message = f"[{host}] {ask.__name__}"
        assert PATTERN.startswith(start_of_chargen(superd, ask))
    assert list(jail.iterdir()) == []
    assert superd.stop() == 0
    assert " error: " not in superd.log()


@pytest.mark.root
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_plugin_that_raises_in_a_jail_is_logged_with_its_source_lines(
    start_superd: Start, tmp_path: Path, jail: Path, loop: str
) -> None:
    superd = start_superd(
        f"""
        [daemon]
        loop = "{loop}"
        [service.failing]
        plugin = "failing"
        listen = "tcp://127.0.0.1:0"
        chroot = "{jail}"
        """,
        env=make_plugin(tmp_path / "plugins", "failing", FAILING),
    )
    assert connect_and_receive(superd.address("failing"), b"no number\n") == RESET
    superd.wait_for_log(r"JSONDecodeError: Expecting value")
    for frame in (r"in stream", r"in fail"):
        assert re.search(rf'\| +File ".*superd_failing.py", line \d+, {frame}', superd.log())
    assert "|     self.fail(line.strip())" in superd.log()
    assert "|     number = json.loads(line)  # the line that fails" in superd.log()

    # the plugin fails in a function of superd: superd's source lines are logged, too
    assert connect_and_receive(superd.address("failing"), b"x" * 200) == RESET
    superd.wait_for_log(r"\| .*LineTooLong")
    assert "|     line = await conn.readline(100)" in superd.log()
    assert "|     return await self._read_buffer.readline(limit)" in superd.log()


@pytest.mark.root
@pytest.mark.parametrize(
    ("module", "error", "answer"),
    [
        ("colorsys", r"late import of 'colorsys' .*preload = \(\"colorsys\",\)", b"colorsys"),
        (
            "encodings.shift_jis",
            r"unknown encoding: shift_jis.*preload = \(\"encodings.shift_jis\",\)",
            "\u3042".encode("shift_jis"),
        ),
    ],
)
def test_a_late_import_in_a_jail_fails_with_a_hint_and_works_with_preload(
    start_superd: Start, tmp_path: Path, jail: Path, module: str, error: str, answer: bytes
) -> None:
    toml, env = services_late_and_early(tmp_path, str(jail))
    superd = start_superd(toml, env=env)
    assert connect_and_receive(superd.address("late"), module.encode()) == RESET
    superd.wait_for_log(rf"error: plugin late failed: .*{error}.* service=late conn=")
    assert exchange(superd.connect("late"), b"sys") == b"sys", (
        "the service fails after a late import"
    )
    assert exchange(superd.connect("early"), module.encode()) == answer
    assert "plugin early failed" not in superd.log()


@pytest.mark.root
def test_a_late_import_without_a_jail_works_and_is_logged_once(
    start_superd: Start, tmp_path: Path
) -> None:
    toml, env = services_late_and_early(tmp_path, "")
    chatty = '[daemon]\nlog-level = "debug"\n'

    # only root can certainly read the interpreter
    rooted = f'{chatty}[defaults]\nuser = "root"\n{toml}'
    superd = start_superd(rooted, env=env)
    for _ in range(2):
        assert exchange(superd.connect("late"), b"colorsys") == b"colorsys"
    message = "late import of 'colorsys': a chroot would refuse it"
    superd.wait_for_log(message)
    assert superd.log().count(message) == 1


@pytest.mark.root
def test_a_missing_module_in_preload_is_logged_at_the_start(
    start_superd: Start, tmp_path: Path, jail: Path
) -> None:
    toml, env = services_late_and_early(tmp_path, str(jail))
    file = tmp_path / "early" / "superd_early.py"
    file.write_text(file.read_text().replace('"colorsys"', '"no_such_module"'))
    superd = start_superd(toml, env=env)
    superd.wait_for_log(r"error: not served: .*preload: No module named 'no_such_module'")
    assert exchange(superd.connect("late"), b"sys") == b"sys"


@pytest.mark.root
def test_exceptions_in_threads_and_finalizers_of_a_plugin_are_logged(
    start_superd: Start, tmp_path: Path, jail: Path
) -> None:
    superd = start_superd(
        f"""
        [service.inside]
        plugin = "inside"
        listen = "tcp://127.0.0.1:0"
        chroot = "{jail}"
        """,
        env=make_plugin(tmp_path / "plugins", "inside", INSIDE),
    )
    code = """
def fail():
    raise ValueError("in a thread")
threading.Thread(target=fail, name="weaver").start()
class Falling:
    def __del__(self):
        raise KeyError("in a finalizer")
Falling()
result = None
"""
    run_inside(superd, "inside", code)
    superd.wait_for_log(r"error: a plugin's thread weaver failed: ValueError: in a thread")
    superd.wait_for_log(r"error: .*KeyError: 'in a finalizer'")
    assert not [line for line in superd.log().splitlines() if not re.match(r"\d{4}-", line)]


ENDINGS = {
    "idle": "result = None",
    "daemon threads": """
for _ in range(8):
    threading.Thread(target=time.sleep, args=(0.01,)).start()
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
result = threading.active_count()
""",
    "no descriptor left": """
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
kept = globals().setdefault("kept", [])
sys.kept = kept
try:
    while True:
        kept.append(os.dup(0))
except OSError as error:
    result = errno.errorcode[error.errno]
for _ in range(8):
    threading.Thread(target=time.sleep, args=(0.01,)).start()
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
""",
}


def end_workers(superd: Superd, code: str, times: int) -> None:
    """Run code in a worker and stop the worker with TERM, `times` times; check its exit code."""
    for _ in range(times):
        [worker] = until(superd.workers, "a worker")
        run_inside(superd, "inside", code)
        os.kill(worker, signal.SIGTERM)
        found = superd.wait_for_log(rf"worker {worker} of pool \S+ (was ended by|ended with) (.*)")
        assert found[2].startswith("code 0"), found[0]
        assert not is_alive(worker)


def superd_with_inside(start_superd: Start, tmp_path: Path, jail: Path) -> Superd:
    return start_superd(
        f"""
        [service.inside]
        plugin = "inside"
        listen = "tcp://127.0.0.1:0"
        chroot = "{jail}"
        """,
        env=make_plugin(tmp_path / "plugins", "inside", INSIDE),
    )


@pytest.mark.root
@pytest.mark.parametrize("code", ENDINGS.values(), ids=ENDINGS)
def test_a_worker_in_a_jail_ends_without_an_abort(
    start_superd: Start, tmp_path: Path, jail: Path, code: str
) -> None:
    end_workers(superd_with_inside(start_superd, tmp_path, jail), code, times=5)


@pytest.mark.root
@pytest.mark.soak
@pytest.mark.parametrize("code", ENDINGS.values(), ids=ENDINGS)
def test_a_hundred_workers_in_a_jail_end_without_an_abort(
    start_superd: Start, tmp_path: Path, jail: Path, code: str
) -> None:
    end_workers(superd_with_inside(start_superd, tmp_path, jail), code, times=100)
