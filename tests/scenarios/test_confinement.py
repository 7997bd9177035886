"""The confinement of a worker: its users, capabilities, limits and descriptors, as in /proc."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support import proc
from tests.support.harness import ask_udp, exchange, make_plugin, receive_all
from tests.support.inside import INSIDE, run_inside
from tests.support.proc import NOBODY, assert_no_descriptor_leaks, assert_powerless

# ids without an entry in the user database
USER, GROUP, MORE = 4321, 4322, (4323, 4324)


@pytest.fixture
def plugins(tmp_path: Path) -> dict[str, str]:
    return make_plugin(tmp_path / "plugins", "inside", INSIDE)


@pytest.mark.root
def test_every_thread_of_every_worker_has_the_right_ids_and_no_privilege(
    start_superd: Start, tmp_path: Path, jail: Path
) -> None:
    threaded = """
        import threading
        from superd.plugin import Service, hookimpl

        class Threaded(Service):
            name = "threaded"

            def prepare(self):
                self.end = threading.Event()
                for _ in range(2):
                    threading.Thread(target=self.end.wait, daemon=True).start()

            def respond(self, request):
                threading.Thread(target=self.end.wait, daemon=True).start()
                return str(threading.active_count()).encode()

        @hookimpl
        def superd_services():
            return [Threaded]
    """
    superd = start_superd(
        f"""
        [daemon]
        workers = 2
        [defaults]
        chroot = "{jail}"
        [service.echo]
        plugin = "echo"
        listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]
        [service.threaded]
        plugin = "threaded"
        listen = "tcp://127.0.0.1:0"
        user = {USER}
        group = {GROUP}
        groups = {list(MORE)}
        [service.time]
        plugin = "time"
        listen = "tcp://127.0.0.1:0"
        chroot = ""
        """,
        env=make_plugin(tmp_path / "plugins", "threaded", threaded),
    )
    assert exchange(superd.connect("echo"), b"hello") == b"hello"
    assert ask_udp(superd.address("echo", "udp"), b"hello") == b"hello"
    assert len(exchange(superd.connect("time"), b"")) == 4
    assert int(exchange(superd.connect("threaded"), b"")) >= 4

    sockets = {
        name: {proc.inode_link(superd.address(name)[1])} for name in ("echo", "threaded", "time")
    }
    sockets["echo"].add(proc.inode_link(superd.address("echo", "udp")[1], "udp"))
    threaded_workers = 0
    for service in superd.status()["services"]:
        workers = superd.workers(service["pool"])
        assert len(workers) == 2
        for pid in workers:
            name = service["name"]
            if name == "threaded":
                assert_powerless(pid, USER, GROUP, MORE)
                threaded_workers += len(proc.threads(pid)) > 2
            else:
                assert_powerless(pid, NOBODY, NOBODY)
            root = "/" if name == "time" else str(jail)
            assert os.readlink(f"/proc/{pid}/root") == root
            assert os.readlink(f"/proc/{pid}/cwd") == root
            foreign = set().union(*(own for other, own in sockets.items() if other != name))
            assert_no_descriptor_leaks(pid, foreign)
            assert sockets[name] <= {one.target for one in proc.descriptors(pid)}
    assert threaded_workers == 2, "the test did not see the threads of `prepare`"


@pytest.mark.root
def test_workers_have_no_privilege_whatever_privileges_superd_inherits(
    start_superd: Start, plugins: dict[str, str]
) -> None:
    """Inheritable capabilities and securebits outlive a change of user unless they are cleared."""
    superd = start_superd(
        """
        [service.inside]
        plugin = "inside"
        listen = "tcp://127.0.0.1:0"
        """,
        "setpriv",
        "--inh-caps=+net_raw,+setuid",
        "--ambient-caps=+net_raw",
        "--securebits=+no_setuid_fixup",
        "--groups=4,27",
        env=plugins,
    )
    [worker] = superd.workers()
    assert_powerless(worker, NOBODY, NOBODY)
    assert run_inside(superd, "inside", "result = os.getgroups()") == []


@pytest.mark.root
def test_a_worker_has_the_configured_umask_niceness_and_limits(start_superd: Start) -> None:
    superd = start_superd(
        """
        [service.echo]
        plugin = "echo"
        listen = "tcp://127.0.0.1:0"
        umask = "027"
        nice = 7
        [service.echo.rlimits]
        nofile = 100
        nproc = 12
        memory = "2GiB"
        file-size = "1MiB"
        cpu = "1h"
        core = 0
        """
    )
    [worker] = superd.workers()
    limits = proc.limits(worker)
    assert proc.threads(worker)[0]["Umask"] == "0027"
    assert proc.niceness(worker) == 7
    assert limits["Max open files"] == ("100", "100")
    assert limits["Max processes"] == ("12", "12")
    assert limits["Max address space"] == (str(2 << 30), str(2 << 30))
    assert limits["Max file size"] == (str(1 << 20), str(1 << 20))
    assert limits["Max cpu time"] == ("3600", "3600")
    assert proc.niceness(superd.pid) == os.getpriority(os.PRIO_PROCESS, 0)
    assert exchange(superd.connect("echo"), b"hello") == b"hello"


@pytest.mark.root
def test_a_file_above_the_size_limit_is_an_error_and_does_not_end_the_worker(
    start_superd: Start, plugins: dict[str, str]
) -> None:
    superd = start_superd(
        """
        [service.inside]
        plugin = "inside"
        listen = "tcp://127.0.0.1:0"
        rlimits = { file-size = "1KiB" }
        """,
        env=plugins,
    )
    code = """
try:
    result = os.pwrite(os.memfd_create("file"), b"x", 5000)
except OSError as error:
    result = error.errno
"""
    [worker] = superd.workers()
    assert run_inside(superd, "inside", code) == errno.EFBIG
    assert superd.workers() == [worker]


@pytest.mark.root
def test_no_new_privs_and_the_core_limit_can_be_changed(start_superd: Start) -> None:
    """A core dump needs a dumpable process."""
    superd = start_superd(
        """
        [service.echo]
        plugin = "echo"
        listen = "tcp://127.0.0.1:0"
        no-new-privs = false
        rlimits = { core = "1MiB" }
        """
    )
    [worker] = superd.workers()
    assert proc.threads(worker)[0]["NoNewPrivs"] == "0"
    assert proc.limits(worker)["Max core file size"] == (str(1 << 20), str(1 << 20))
    assert os.stat(f"/proc/{worker}/fd").st_uid == NOBODY


@pytest.mark.root
def test_no_new_privs_decides_whether_programs_can_gain_capabilities(start_superd: Start) -> None:
    """A set-user-ID program has what is in its bounding set. The worker itself never has any."""
    superd = start_superd(
        """
        [defaults]
        plugin = "exec"
        listen = "tcp://127.0.0.1:0"

        [service.no]
        options.command = ["cat", "/proc/self/status"]

        [service.yes]
        options.command = ["cat", "/proc/self/status"]
        no-new-privs = false
        """
    )
    own = proc.threads(os.getpid())[0]["CapBnd"]
    for service, bounding in (("no", "0" * 16), ("yes", own)):
        with superd.connect(service) as client:
            told = dict(line.split(":\t", 1) for line in receive_all(client).decode().splitlines())
        assert told["CapBnd"] == bounding
        assert {told[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert len(superd.workers()) >= 2
    for worker in superd.workers():
        assert proc.threads(worker)[0]["CapEff"] == "0" * 16


REGAIN = """
def tried(name, *arguments):
    try:
        getattr(os, name)(*arguments)
    except OSError as error:
        return error.errno
    return "done"

result = {
    "setuid": tried("setuid", 0),
    "setresuid": tried("setresuid", -1, 0, -1),
    "setgid": tried("setgid", 0),
    "setgroups": tried("setgroups", [0]),
    "chroot": tried("chroot", "."),
    "mknod": tried("mknod", "null", 0o666 | stat.S_IFBLK, os.makedev(8, 0)),
    "nice": tried("nice", -5),
    "kill": tried("kill", os.getppid(), 0),
}
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, PTRACE_ATTACH = 0x10000000, 16
calls = {"unshare": (CLONE_NEWUSER,), "ptrace": (PTRACE_ATTACH, os.getppid(), 0, 0)}
for name, arguments in calls.items():
    result[name] = ctypes.get_errno() if getattr(libc, name)(*arguments) < 0 else "done"
"""

ESCAPE = """
outside = []
for descriptor in range(256):
    try:
        os.stat("etc", dir_fd=descriptor)
        outside.append(("openat", descriptor))
    except OSError:
        pass
    try:
        os.fchdir(descriptor)
        outside.append(("fchdir", descriptor))
    except OSError:
        pass
for path in ("/etc/passwd", "../" * 20 + "etc/passwd", "/proc/1/root/etc/passwd", "/proc/self/cwd"):
    if os.path.exists(path):
        outside.append(path)
result = [outside, os.listdir("/"), os.listdir("..")]
"""


@pytest.mark.root
def test_plugin_code_cannot_regain_privileges_or_leave_the_jail(
    start_superd: Start, plugins: dict[str, str], jail: Path
) -> None:
    superd = start_superd(
        f"""
        [service.inside]
        plugin = "inside"
        listen = "tcp://127.0.0.1:0"
        chroot = "{jail}"
        """,
        env=plugins,
    )
    refused = run_inside(superd, "inside", REGAIN)
    assert isinstance(refused, dict)
    assert set(refused.values()) <= {errno.EPERM, errno.EACCES}, refused
    assert run_inside(superd, "inside", ESCAPE) == [[], [], []]


@pytest.mark.root
def test_the_environment_of_a_plugin_has_only_the_permitted_variables(
    start_superd: Start, plugins: dict[str, str]
) -> None:
    superd = start_superd(
        """
        [service.inside]
        plugin = "inside"
        listen = "tcp://127.0.0.1:0"
        """,
        env={
            **plugins,
            "LEAKENV": "secret",
            "LD_PRELOAD": "",
            "PYTHONSTARTUP": "/tmp/evil.py",
            "IFS": "x",
            "TZ": "UTC",
            "LC_ALL": "C.UTF-8",
        },
    )
    code = """
libc = ctypes.CDLL(None)
pointers = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
raw = []
while pointers[len(raw)] is not None:
    raw.append(pointers[len(raw)].decode())
result = [dict(os.environ), raw]
"""
    python, system = run_inside(superd, "inside", code)
    wanted = {name: os.environ[name] for name in ("PATH", "LANG", "LC_CTYPE") if name in os.environ}
    own = {"PYDANTIC_DISABLE_PLUGINS": "__all__"}
    assert python == {**wanted, **own, "TZ": "UTC", "LC_ALL": "C.UTF-8"}
    assert sorted(system) == sorted(f"{name}={value}" for name, value in python.items())
    [worker] = superd.workers()
    assert b"secret" not in Path(f"/proc/{worker}/environ").read_bytes()


@pytest.mark.root
def test_root_workers_run_as_nobody_by_default_and_as_root_with_a_warning(
    start_superd: Start,
) -> None:
    superd = start_superd(
        """
        [service.echo]
        plugin = "echo"
        listen = "tcp://127.0.0.1:0"
        [service.discard]
        plugin = "discard"
        listen = "tcp://127.0.0.1:0"
        user = "root"
        [service.time]
        plugin = "time"
        listen = "tcp://127.0.0.1:0"
        user = 0
        """
    )
    [plain], [rooted] = superd.workers("nobody"), superd.workers("root")
    assert proc.threads(plain)[0]["Uid"].split() == [str(NOBODY)] * 4
    assert proc.threads(rooted)[0]["Uid"].split() == ["0"] * 4
    assert proc.threads(rooted)[0]["NoNewPrivs"] == "1"
    warnings = [line for line in superd.log().splitlines() if " warning: " in line]
    assert len([line for line in warnings if "root" in line]) == 1
    assert 'user = "root"' in warnings[0]
    assert "discard, time" in warnings[0]
