"""A jail that other users can write: superd never opens or runs a file in it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import connect_and_receive
from tests.support.harness import (
    make_plugin,
)
from tests.support.inside import INSIDE, run_inside
from tests.support.jails import (
    BUNDLED_PLUGINS,
    FAILING,
    RESET,
    all_plugins,
    over_tcp,
    over_udp,
    over_unix,
    services_late_and_early,
    start_of_chargen,
)

HOSTILE = (
    "email.py",
    "json/decoder.py",
    "mailbox.py",
    "_strptime.py",
    "encodings/__init__.py",
    "encodings/cp500.py",
)


def furnish(jail: Path) -> None:
    """Fill a jail with modules and libraries that careless code would load; make it writable."""
    for directory in ("", *(entry.lstrip("/") for entry in sys.path if entry.startswith("/"))):
        for name in HOSTILE:
            file = jail / directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("raise SystemExit('taken from the jail')\n")
    for library in ("lib", "lib64", "usr/lib", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"):
        (jail / library).mkdir(parents=True, exist_ok=True)
        for name in ("nss_x", "nss_systemd", "nss_db", "nss_dns", "nss_files", "gcc_s"):
            (jail / library / f"lib{name}.so.{1 if name == 'gcc_s' else 2}").write_text("hostile")
    (jail / "etc").mkdir()
    databases = ("passwd", "group", "hosts", "services", "protocols")
    (jail / "etc/nsswitch.conf").write_text("".join(f"{name}: x\n" for name in databases))
    for place in (jail, *jail.rglob("*")):
        place.chmod(0o777)


def opened(trace: Path, worker: int) -> list[str]:
    """Return the calls in strace's report by which a worker in its jail opened a file.

    Python 3.13 tries to open "<unknown>" if it cannot parse a line of a traceback for the markers
    below it. The file would only be quoted in an error that is not shown.
    """
    lines = [line for line in trace.read_text().splitlines() if line.startswith(f"{worker} ")]
    start = next(n for n, line in enumerate(lines) if "chroot(" in line)
    calls = [line for line in lines[start + 1 :] if re.search(r" (open|openat|execve)\(", line)]
    return [line for line in calls if '"<unknown>"' not in line]


@pytest.mark.root
@pytest.mark.tool("strace")
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_worker_opens_no_file_in_a_jail_that_others_can_write(
    start_superd: Start, tmp_path: Path, jail: Path, loop: str
) -> None:
    trace = tmp_path / "trace"
    toml, env = services_late_and_early(tmp_path, str(jail))
    more = make_plugin(tmp_path / "late", "failing", FAILING)
    superd = start_superd(
        all_plugins(jail, tmp_path, loop)
        + toml.replace('pool = "late"\n', "").replace('pool = "early"\n', "")
        + '[service.failing]\nplugin = "failing"\nlisten = "tcp://127.0.0.1:0"\n',
        *("strace", "-f", "-o", str(trace), "-e", "trace=open,openat,execve,chroot"),
        env={**more, **env},
    )
    furnish(jail)
    for name in BUNDLED_PLUGINS:
        for ask in (over_tcp, over_udp, over_unix):
            if name == "chargen":
                start_of_chargen(superd, ask)
            else:
                ask(superd, name, b"x\r\n")
    for module in ("email.mime.text", "mailbox", "encodings.cp500"):
        assert connect_and_receive(superd.address("late"), module.encode()) == RESET
    assert connect_and_receive(superd.address("failing"), b"no number\n") == RESET
    superd.wait_for_log(r"\|     number = json.loads\(line\)")
    [worker] = superd.workers()
    assert superd.stop() == 0
    assert opened(trace, worker) == []
    assert "taken from the jail" not in superd.log()


@pytest.mark.root
@pytest.mark.tool("strace")
def test_name_lookups_load_no_library_from_the_jail(
    start_superd: Start, tmp_path: Path, jail: Path
) -> None:
    """The jail has an nsswitch.conf, and libraries that it and the host's nsswitch.conf name."""
    trace = tmp_path / "trace"
    superd = start_superd(
        f"""
        [service.inside]
        plugin = "inside"
        listen = "tcp://127.0.0.1:0"
        chroot = "{jail}"
        """,
        *("strace", "-f", "-o", str(trace), "-e", "trace=open,openat,execve,chroot"),
        env=make_plugin(tmp_path / "plugins", "inside", INSIDE),
    )
    furnish(jail)
    code = """
import grp, pwd
result = []
for look_up, name in (
    (pwd.getpwnam, "daemon"), (grp.getgrnam, "daemon"), (socket.gethostbyname, "localhost"),
    (socket.getservbyname, "http"), (socket.getprotobyname, "tcp"),
):
    try:
        look_up(name)
    except Exception as error:
        result.append(type(error).__name__)
"""
    assert run_inside(superd, "inside", code) == [
        *("KeyError", "KeyError", "gaierror", "OSError", "OSError")
    ]
    [worker] = superd.workers()
    assert superd.stop() == 0
    calls = opened(trace, worker)
    assert [call for call in calls if "/etc/passwd" in call], "the lookups are not in the trace"
    libraries = [call for call in calls if ".so" in call or "nsswitch" in call]
    assert libraries == []
    assert not [call for call in calls if "execve" in call]
