"""Reload: applies a changed configuration wholly or not at all, and loses no connection."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import stat
import time
from pathlib import Path

import pytest

from superd.admission.scoreboard import MIN_WORKER_SLOTS
from tests.conftest import Start
from tests.scenarios.test_access import is_admitted
from tests.support.clients import (
    ask_unixgram,
    connect_many,
    connect_tcp,
    connect_unix,
    receive_and_close,
    receive_to_end,
)
from tests.support.harness import Superd, exchange, make_plugin, until
from tests.support.loads import echo_load, under_load, wait_for_answers
from tests.support.ports import free_port, free_ports
from tests.support.proc import inode_link

ECHO = """
[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:{port}"
"""


def rewrite(served: Superd, toml: str) -> None:
    served.toml = toml
    served.write()


def reload(served: Superd, toml: str) -> str:
    """Reload with another configuration, and return the output of the command."""
    rewrite(served, toml)
    done = served.run("reload")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_reload_adds_removes_and_changes_services_and_keeps_connections(
    start_superd: Start,
) -> None:
    ports = [free_port() for _ in range(3)]
    first = (
        ECHO.format(port=ports[0])
        + f"""
        [service.leaving]
        plugin = "echo"
        listen = "tcp://127.0.0.1:{ports[1]}"
        """
    )
    second = (
        ECHO.format(port=ports[0])
        + f"""
        deny = "127.0.0.2"

        [service.added]
        plugin = "daytime"
        listen = "tcp://127.0.0.1:{ports[2]}"
        """
    )
    served = start_superd(first)
    with connect_tcp(("127.0.0.1", ports[0])) as one, connect_tcp(("127.0.0.1", ports[1])) as other:
        for client in (one, other):
            client.sendall(b"before")
            assert client.recv(100) == b"before"
        assert reload(served, second) == "added: added\necho: changed\nleaving: removed\n"
        with pytest.raises(ConnectionRefusedError):
            connect_tcp(("127.0.0.1", ports[1]))
        assert len(receive_and_close(connect_tcp(("127.0.0.1", ports[2])))) == 26
        for client in (one, other):
            client.sendall(b"after")
            assert client.recv(100) == b"after"
        states = {worker["generation"]: worker["state"] for worker in served.answer()["workers"]}
        assert states == {1: "draining", 2: "ready"}
    until(lambda: len(served.answer()["workers"]) == 1, "the old worker to end")
    assert served.counts("echo")["bytes-in"] == len(b"before" + b"after")
    assert not is_admitted(served, "echo", "127.0.0.2")
    served.wait_for_log("reloaded: services 1 added, 1 removed, 1 changed, 0 unchanged")


@pytest.mark.root
def test_a_reload_prints_only_news(start_superd: Start) -> None:
    """Services that have not changed are counted, and a notice is printed when it is new."""
    many = "".join(
        f'[service.s{n}]\nplugin = "echo"\nlisten = "unix://@news-{os.getpid()}-{n}"\n'
        for n in range(20)
    )
    served = start_superd(many)
    notice = 'superd: user = "root", so these services keep every privilege: '
    rewrite(served, many + 'user = "root"\n')
    done = served.run("reload")
    assert done.stderr == f"{notice}s19\n"
    assert done.stdout == "s19: changed\nunchanged: 19 services\n"
    done = served.run("reload")
    assert (done.stdout, done.stderr) == ("unchanged: 20 services\n", "")
    assert served.run("disable", "s1").stderr == ""


def test_an_unchanged_address_keeps_its_listening_socket(
    start_superd: Start, tmp_path: Path
) -> None:
    toml = f"""
        [service.echo]
        plugin = "echo"
        listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0", "unix://{tmp_path}/echo"]
        backlog = 100
        """
    served = start_superd(toml)
    address, udp = served.address("echo"), served.address("echo", "udp")
    before = (
        inode_link(address[1]),
        inode_link(udp[1], "udp"),
        os.stat(tmp_path / "echo").st_ino,
    )
    assert reload(served, toml.replace("100", "50") + "nodelay = false\n") == "echo: changed\n"
    after = (
        inode_link(address[1]),
        inode_link(udp[1], "udp"),
        os.stat(tmp_path / "echo").st_ino,
    )
    assert after == before
    assert exchange(connect_tcp(address), b"x") == b"x"
    assert exchange(connect_unix(tmp_path / "echo"), b"x") == b"x"
    assert served.stop() == 0
    assert not (tmp_path / "echo").exists()


UNIX = """
[service.echo]
plugin = "echo"
listen = "{address}"
"""


@pytest.mark.parametrize("transport", ["unix", "unixgram", "unixpacket"])
def test_a_reload_changes_the_mode_of_the_file_of_a_kept_unix_socket(
    start_superd: Start, tmp_path: Path, transport: str
) -> None:
    path = tmp_path / "echo"
    served = start_superd(UNIX.format(address=f"{transport}://{path}"))
    inode = path.stat().st_ino
    for name, mode in (("echo?mode=0600", 0o600), ("./echo?mode=0660", 0o660), ("echo", 0o666)):
        toml = UNIX.format(address=f"{transport}://{tmp_path}/{name}")
        assert reload(served, toml) == "echo: changed\n"
        assert (path.stat().st_ino, stat.S_IMODE(path.stat().st_mode)) == (inode, mode)
        assert reload(served, toml) == "unchanged: 1 service\n"
    assert served.stop() == 0
    assert not path.exists()


def test_a_failed_reload_does_not_change_the_mode(start_superd: Start, tmp_path: Path) -> None:
    source = f"""
        import os
        from superd.plugin import Service, hookimpl

        class Once(Service):
            name = "once"

            def prepare(self):
                os.mkdir("{tmp_path}/prepared")

            def respond(self, request):
                return b""

        @hookimpl
        def superd_services():
            return [Once]
        """
    path = tmp_path / "echo"
    plugins = make_plugin(tmp_path / "plugins", "once", source)
    served = start_superd(UNIX.format(address=f"unix://{path}?mode=0600"), env=plugins)
    once = '[service.o]\nplugin = "once"\nlisten = "udp://127.0.0.1:0"\n'
    rewrite(served, UNIX.format(address=f"unix://{path}?mode=0666") + once)
    done = served.run("reload")
    assert done.returncode == 1
    assert "plugin once failed in prepare" in done.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert exchange(connect_unix(path), b"x") == b"x"


def test_a_new_greeting_of_a_tcpmux_address_changes_the_service(start_superd: Start) -> None:
    toml = """
        [service.mux]
        plugin = "tcpmux"
        listen = "tcp://127.0.0.1:0"
        """ + UNIX.format(address="tcpmux://echo{}")
    served = start_superd(toml.format(""))
    for query, greeting in (("?greeting=service", b""), ("", b"+Go\r\n")):
        assert reload(served, toml.format(query)) == "echo: changed\nunchanged: 1 service\n"
        assert exchange(served.connect("mux"), b"echo\r\nx") == greeting + b"x"


def test_a_conflict_with_an_address_of_superd_itself_is_explained(
    start_superd: Start, tmp_path: Path
) -> None:
    path = tmp_path / "q"
    other = f'[service.other]\nplugin = "echo"\nlisten = "unix://{tmp_path}/other"\n'
    served = start_superd(UNIX.format(address=f"unix://{path}") + other)
    rewrite(served, UNIX.format(address=f"unixgram://{tmp_path}/./q") + other)
    done = served.run("reload")
    assert done.returncode == 69
    line = served.file.read_text().splitlines().index(f'listen = "unixgram://{tmp_path}/./q"') + 1
    assert done.stderr.startswith(
        f"{served.file}:{line}:10: service.echo.listen: cannot listen on"
        f" unixgram://{tmp_path}/./q: superd itself"
        " listens there for service.echo and cannot change that socket while it is open; restart"
        " superd, or run `superd disable echo`, `superd reload` and `superd enable echo`\n"
    )
    assert exchange(connect_unix(path), b"x") == b"x"
    for command in (("disable", "echo"), ("reload",), ("enable", "echo")):
        assert served.run(*command).returncode == 0
    assert ask_unixgram(path, b"x") == b"x"


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_reload_makes_a_removed_or_replaced_socket_file_again(
    start_superd: Start, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "echo"
    served = start_superd(UNIX.format(address=f"unix://{path}"))
    with connect_unix(path) as client:
        path.unlink()
        if how == "replaced":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
        done = served.run("reload")
        message = f"the file of unix://{path} was removed or replaced; superd makes it again"
        assert (done.returncode, done.stdout) == (0, "unchanged: 1 service\n")
        assert message in done.stderr
        assert exchange(connect_unix(path), b"x") == b"x"
        assert exchange(client, b"x") == b"x"
    assert reload(served, served.toml) == "unchanged: 1 service\n"
    assert served.log().count(message) == 1
    assert served.stop() == 0
    assert not path.exists()


BAD = {
    "syntax": "[service.echo\n",
    "garbage": "\x00\x01\x02",
    "empty": "",
    "plugin": '[service.x]\nplugin = "ehco"\nlisten = "tcp://127.0.0.1:0"\n',
    "option": '[service.x]\nplugin = "qotd"\nlisten = "tcp://127.0.0.1:0"\noptions = { a = 1 }\n',
    "user": '[service.x]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\nuser = "nosuchuser"\n',
    "raises": '[service.x]\nplugin = "raises"\nlisten = "tcp://127.0.0.1:0"\n',
    "exits": '[service.x]\nplugin = "exits"\nlisten = "tcp://127.0.0.1:0"\n',
    "prepare": '[service.x]\nplugin = "unready"\nlisten = "tcp://127.0.0.1:0"\n',
}
PLUGINS = {
    "raises": "raise ValueError('not today')",
    "exits": "import os\nos._exit(3)",
    "unready": """
        from superd.plugin import Service, hookimpl

        class Unready(Service):
            name = "unready"

            def prepare(self):
                raise OSError("no such machine")

            def respond(self, request):
                return b""

        @hookimpl
        def superd_services():
            return [Unready]
        """,
}
TOML = """
[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
"""


@pytest.mark.parametrize("how", ["command", "signal"])
@pytest.mark.parametrize("mistake", BAD)
def test_a_reload_with_a_mistake_changes_nothing(served: Superd, mistake: str, how: str) -> None:
    workers, generation = served.workers(), served.answer()["generation"]
    good, start = served.toml, len(served.log())
    with served.connect("echo") as client:
        client.sendall(b"a")
        assert client.recv(1) == b"a"
        text = BAD[mistake]
        rewrite(served, text) if text.startswith("[") else served.file.write_text(text)
        if how == "command":
            # a file that is not TOML does not say where the control socket is
            done = served.run("reload")
            assert done.returncode in (1, 78)
            assert done.stderr
        else:
            served.signal(signal.SIGHUP)
            until(
                lambda: "the configuration is unchanged" in served.log()[start:],
                "the mistake in the log",
            )
            assert "not reloaded: " in served.log()[start:]
        client.sendall(b"b")
        assert client.recv(1) == b"b"
    assert served.workers() == workers
    assert exchange(served.connect("echo"), b"x") == b"x"
    rewrite(served, good)
    assert reload(served, good) == "unchanged: 1 service\n"
    assert served.answer()["generation"] == generation + 1


@pytest.mark.slow
def test_a_reload_with_a_plugin_that_hangs_at_import_changes_nothing(
    start_superd: Start, tmp_path: Path
) -> None:
    source = "import time\ntime.sleep(600)\n"
    served = start_superd(TOML, env=make_plugin(tmp_path / "plugins", "hangs", source))
    rewrite(served, TOML + '[service.h]\nplugin = "hangs"\nlisten = "tcp://127.0.0.1:0"\n')
    done = served.run("reload")
    assert done.returncode == 78
    line = served.file.read_text().splitlines().index('plugin = "hangs"') + 1
    assert done.stderr.startswith(
        f"{served.file}:{line}:10: service.h.plugin: plugin hangs: it took"
    )
    assert served.answer()["generation"] == 1
    assert exchange(served.connect("echo"), b"x") == b"x"


def test_a_reload_with_a_port_in_use_changes_nothing(start_superd: Start) -> None:
    port, other = free_port(), free_port()
    served = start_superd(ECHO.format(port=port))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        rewrite(
            served,
            ECHO.format(port=port)
            + f'[service.b]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:{other}"\n'
            + f'[service.c]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:{number}"\n',
        )
        done = served.run("reload")
        assert done.returncode == 69
        assert f"service.c.listen: cannot listen on tcp://127.0.0.1:{number}" in done.stderr
        with pytest.raises(ConnectionRefusedError):
            connect_tcp(("127.0.0.1", other))
        assert exchange(connect_tcp(("127.0.0.1", port)), b"x") == b"x"
    done = served.run("reload")
    assert done.returncode == 0
    assert exchange(connect_tcp(("127.0.0.1", number)), b"x") == b"x"


def test_a_reload_can_add_a_specific_address_beside_the_wildcard_and_remove_it(
    start_superd: Start,
) -> None:
    port = free_port()
    wide = f'[service.wide]\nplugin = "echo"\nlisten = "tcp://*:{port}"\n'
    narrow = f'[service.narrow]\nplugin = "daytime"\nlisten = "tcp://127.0.0.2:{port}"\n'
    served = start_superd(wide)
    assert exchange(connect_tcp(("127.0.0.2", port)), b"x") == b"x"
    reload(served, wide + narrow)
    assert len(receive_and_close(connect_tcp(("127.0.0.2", port)))) == 26
    assert exchange(connect_tcp(("127.0.0.1", port)), b"x") == b"x"
    reload(served, narrow)
    with pytest.raises(ConnectionRefusedError):
        connect_tcp(("127.0.0.1", port))
    reload(served, wide)
    assert exchange(connect_tcp(("127.0.0.2", port)), b"x") == b"x"


def test_a_reload_reads_list_files_again(start_superd: Start, tmp_path: Path) -> None:
    (tmp_path / "friends").write_text("127.0.0.2\n")
    toml = f"""
        [service.echo]
        plugin = "echo"
        listen = "tcp://127.0.0.1:0"
        allow-file = "{tmp_path}/friends"
        """
    served = start_superd(toml)

    def admits(source: str) -> bool:
        return is_admitted(served, "echo", source)

    assert (admits("127.0.0.2"), admits("127.0.0.3")) == (True, False)
    (tmp_path / "friends").write_text("127.0.0.3\n")
    assert admits("127.0.0.2")  # not reloaded yet
    assert reload(served, toml) == "echo: changed\n"
    assert (admits("127.0.0.2"), admits("127.0.0.3")) == (False, True)


LIMITED_BY_SOURCE = """
[daemon]
workers = 2

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
max-connections = 5
max-per-source = 3
on-limit = "reject"

[service.slow]
plugin = "daytime"
listen = "tcp://127.0.0.1:0"
rate = "1/h"
burst = 3
on-limit = "reject"
"""


def test_bans_and_limits_are_kept_over_a_reload(start_superd: Start) -> None:
    served = start_superd(LIMITED_BY_SOURCE)
    assert served.run("ban", "127.0.0.9").returncode == 0
    assert [bool(receive_and_close(served.connect("slow"))) for _ in range(2)] == [True] * 2
    with contextlib.ExitStack() as stack:
        for source in ("127.0.0.2", "127.0.0.2", "127.0.0.2", "127.0.0.3"):
            client = stack.enter_context(served.connect("echo", source))
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        for _ in range(2):
            reload(served, LIMITED_BY_SOURCE)
        assert served.counts("echo")["active"] == 4
        assert not is_admitted(served, "echo", "127.0.0.2")
        fifth = stack.enter_context(served.connect("echo", "127.0.0.4"))
        fifth.sendall(b"x")
        assert fifth.recv(1) == b"x"
        assert not is_admitted(served, "echo", "127.0.0.5")
        counts = served.counts("echo")
        assert counts["refused-max-per-source"] == 1
        assert counts["refused-max-connections"] == 1
        assert counts["active"] == 5
    assert [bool(receive_and_close(served.connect("slow"))) for _ in range(2)] == [True, False]
    with served.connect("echo", "127.0.0.9") as banned, contextlib.suppress(ConnectionError):
        assert banned.recv(1) == b""
    assert served.counts("echo")["refused-banned"] == 1
    served.wait_until_idle("echo")


def test_a_reload_loads_a_changed_plugin_and_old_connections_keep_the_old_one(
    start_superd: Start, tmp_path: Path
) -> None:
    source = """
        from superd.plugin import Service, hookimpl

        class Version(Service):
            name = "version"

            async def stream(self, conn):
                async for _ in conn:
                    await conn.send(b"one\\n")

        @hookimpl
        def superd_services():
            return [Version]
        """
    toml = '[service.v]\nplugin = "version"\nlisten = "tcp://127.0.0.1:0"\n'
    served = start_superd(toml, env=make_plugin(tmp_path / "plugins", "version", source))
    module = tmp_path / "plugins" / "superd_version.py"
    with served.connect("v") as old:
        old.sendall(b"?\n")
        assert old.recv(10) == b"one\n"
        module.write_text(module.read_text().replace("one", "two, no less"))
        assert reload(served, toml) == "unchanged: 1 service\n"
        assert exchange(served.connect("v"), b"?\n") == b"two, no less\n"
        old.sendall(b"?\n")
        assert old.recv(10) == b"one\n"


def test_a_reload_changes_the_log(start_superd: Start, tmp_path: Path) -> None:
    port = free_port()
    served = start_superd(ECHO.format(port=port))
    reload(served, f'[daemon]\nlog = "{tmp_path}/log"\n' + ECHO.format(port=port))
    assert "reloaded: " in (tmp_path / "log").read_text()
    assert "reloaded: " not in served.log()
    rewrite(served, f'[daemon]\nlog = "{tmp_path}/no/log"\n' + ECHO.format(port=port))
    done = served.run("reload")
    assert done.returncode == 1
    assert "cannot log to" in done.stderr
    assert exchange(connect_tcp(("127.0.0.1", port)), b"x") == b"x"


def test_a_reload_reports_a_change_that_needs_a_restart(
    start_superd: Start, tmp_path: Path
) -> None:
    port = free_port()
    served = start_superd(ECHO.format(port=port))
    served.toml = f'[daemon]\nban-file = "{tmp_path}/other"\n' + ECHO.format(port=port)
    served.write()
    done = served.run("reload")
    assert done.returncode == 0
    assert f"ban-file stays {served.directory}/bans: changing it takes a restart" in done.stderr


@pytest.mark.parametrize(
    "number",
    [4, pytest.param(10, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.soak)],
)
def test_reloads_under_load_lose_no_connection(start_superd: Start, number: int) -> None:
    port, other = free_ports(2)
    address = ("127.0.0.1", port)
    one = ECHO.format(port=port)
    two = one + f'[service.b]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:{other}"\n'
    served = start_superd(one)
    loads = [echo_load(lambda: connect_tcp(address)) for _ in range(3)]
    before = inode_link(port), served.open_descriptors()
    with under_load(*loads), connect_many(address, 5) as sessions:
        for n in range(number):
            reload(served, two if n % 2 == 0 else one)
            for session in sessions:
                session.sendall(b"%d" % n)
                assert session.recv(10) == b"%d" % n
            wait_for_answers(loads, 2)
    assert [load.failures for load in loads] == [[]] * 3
    assert sum(load.served for load in loads) > 50
    until(lambda: len(served.answer()["workers"]) == 1, "the old workers to end")
    assert len(served.workers()) == 1
    assert (inode_link(port), served.open_descriptors()) == before


LIMITED = """
[daemon]
loop = "{loop}"
drain-timeout = "200ms"
reload-drain-timeout = "{limit}"

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_connections_outlast_a_reload_until_superd_is_stopped(
    start_superd: Start, loop: str
) -> None:
    toml = LIMITED.format(loop=loop, limit="0s")
    served = start_superd(toml)
    with served.connect("echo") as client:
        client.sendall(b"1")
        assert client.recv(1) == b"1"
        reload(served, toml)
        begun = time.monotonic()
        # another worker, stopped now, cuts its connection: so drain-timeout has passed
        with served.connect("echo") as other:
            other.sendall(b"1")
            assert other.recv(1) == b"1"
            os.kill(served.workers()[0], signal.SIGTERM)
            assert receive_to_end(other)[0] == b""
        assert time.monotonic() - begun > 0.2
        client.sendall(b"2")
        assert client.recv(1) == b"2"
        assert "draining" in {worker["state"] for worker in served.answer()["workers"]}
        served.signal(signal.SIGTERM)
        assert receive_to_end(client)[0] == b""
    assert served.wait() == 0
    assert len(re.findall("1 connections cut at the end of drain-timeout", served.log())) == 2


def test_reload_drain_timeout_limits_connections_from_before_a_reload(start_superd: Start) -> None:
    toml = LIMITED.format(loop="auto", limit="300ms")
    served = start_superd(toml)
    with served.connect("echo") as client:
        client.sendall(b"1")
        assert client.recv(1) == b"1"
        reload(served, toml)
        assert receive_to_end(client)[0] == b""
    served.wait_for_log("1 connections cut at the end of reload-drain-timeout")
    until(lambda: len(served.answer()["workers"]) == 1, "the old worker to end")


@pytest.mark.soak
def test_a_reload_without_room_for_more_workers_fails_and_says_why(start_superd: Start) -> None:
    served = start_superd(LIMITED.format(loop="auto", limit="0s"))
    with contextlib.ExitStack() as stack:
        for _ in range(MIN_WORKER_SLOTS - 1):
            client = stack.enter_context(served.connect("echo"))
            client.sendall(b"1")
            assert client.recv(1) == b"1"
            reload(served, served.toml)
        client = stack.enter_context(served.connect("echo"))
        client.sendall(b"1")
        assert client.recv(1) == b"1"
        done = served.run("reload")
        assert done.returncode == 1
        assert (
            f"there is room for {MIN_WORKER_SLOTS} workers, including those that drain"
            in done.stderr
        )
    until(lambda: len(served.answer()["workers"]) == 1, "the old workers to end")
    reload(served, served.toml)


@pytest.mark.root
def test_a_reload_without_free_descriptors_fails_and_superd_keeps_serving(
    start_superd: Start,
) -> None:
    served = start_superd(TOML)
    before = served.open_descriptors()
    named = served.toml.replace("[service.echo]", '[service.echo]\ndeny = ".example"')
    for free in range(8):
        rewrite(served, named)
        seen = len(re.findall("not reloaded: |reloaded: ", served.log()))
        resource.prlimit(served.pid, resource.RLIMIT_NOFILE, (before + free, before + 4096))
        served.signal(signal.SIGHUP)
        until(
            lambda n=seen: len(re.findall("not reloaded: |reloaded: ", served.log())) > n,  # type: ignore[misc]
            "the end of the reload",
        )
        assert exchange(served.connect("echo"), b"x") == b"x"
    resource.prlimit(served.pid, resource.RLIMIT_NOFILE, (before + 4096, before + 4096))
    until(lambda: len(served.answer()["workers"]) == 1, "one worker")
    assert served.run("reload").returncode == 0
    assert exchange(served.connect("echo"), b"x") == b"x"
    assert "not reloaded: Too many open files" in served.log()


def test_many_hup_signals_end_in_one_serving_generation(start_superd: Start) -> None:
    served = start_superd(TOML)
    for _ in range(20):
        served.signal(signal.SIGHUP)
    until(lambda: served.answer()["generation"] > 1, "a reload")

    def is_done() -> bool:
        answer = served.answer()
        return bool(answer["reload"]["state"] == "done" and len(answer["workers"]) == 1)

    until(is_done, "the end of the reloads")
    assert exchange(served.connect("echo"), b"x") == b"x"


def test_a_stop_during_a_reload_does_not_wait_for_the_plugin(
    start_superd: Start, tmp_path: Path
) -> None:
    source = """
        import time
        from superd.plugin import Service, hookimpl

        class Slow(Service):
            name = "slow"

            def prepare(self):
                time.sleep(8)

            def respond(self, request):
                return b""

        @hookimpl
        def superd_services():
            return [Slow]
        """
    served = start_superd(TOML, env=make_plugin(tmp_path / "plugins", "slow", source))
    rewrite(served, TOML + '[service.s]\nplugin = "slow"\nlisten = "tcp://127.0.0.1:0"\n')
    served.signal(signal.SIGHUP)
    until(lambda: served.answer()["reload"], "the reload to begin")
    assert exchange(served.connect("echo"), b"x") == b"x"  # during the reload
    began = time.monotonic()
    served.signal(signal.SIGTERM)
    assert served.wait() == 0
    assert time.monotonic() - began < 6  # prepare takes 8 s
    assert "not reloaded: superd stops" in served.log()


def test_reload_fails_without_a_running_daemon(tmp_path: Path) -> None:
    stopped = Superd(tmp_path, TOML)
    stopped.write()
    done = stopped.run("reload")
    assert (done.returncode, done.stderr) == (1, "superd: it is not running\n")
