"""Sockets that the service manager keeps for superd over a crash and a restart (FDSTORE)."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import EVENT_TIMEOUT, Superd, exchange, is_alive, until
from tests.support.namespaces import network_namespace
from tests.support.passing import NotifySocket
from tests.support.ports import OWN_PORT, own_host

TOML = """
[service.echo]
plugin = "echo"
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0", "unix://{directory}/echo?mode=0600"]

[service.more]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
"""


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[NotifySocket]:
    listener = NotifySocket(tmp_path / "notify")
    yield listener
    listener.close()


@pytest.fixture
def superd(supervisor: NotifySocket, tmp_path: Path) -> Iterator[Superd]:
    """A superd whose sockets are all in the store; a test can kill and restart it."""
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    instance = Superd(tmp_path, TOML.format(directory=tmp_path), env=env)
    instance.start()
    until(lambda: len(supervisor.names()) == 4, "four sockets in the store")
    yield instance
    instance.stop()
    print(f"--- log of {instance.file}\n{instance.log()}")


def crash(superd: Superd) -> None:
    """Kill the master and wait until its workers end, too."""
    workers = superd.workers()
    os.kill(superd.pid, signal.SIGKILL)
    wait_for_exit(superd)
    for pid in workers:
        until(lambda pid=pid: not is_alive(pid), f"the end of worker {pid}")  # type: ignore[misc]


def wait_for_exit(superd: Superd) -> int:
    """Wait until superd exits, prepare it for another start, and return the exit code."""
    code = superd.wait()
    assert superd.process is not None
    assert superd.process.stdout is not None
    superd.process.stdout.close()
    superd.announced.clear()
    return code


def test_a_crash_loses_no_pending_client_and_no_port(
    superd: Superd, supervisor: NotifySocket
) -> None:
    before = list(superd.announced)
    address, udp = superd.address("echo"), superd.address("echo", "udp")
    path = str(superd.directory / "echo")
    file = os.stat(path).st_ino
    crash(superd)
    with (
        socket.create_connection(address, EVENT_TIMEOUT) as client,
        socket.socket(socket.AF_UNIX) as local,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        local.settimeout(EVENT_TIMEOUT)
        local.connect(path)
        datagrams.settimeout(EVENT_TIMEOUT)
        datagrams.connect(udp)
        for one in (client, local, datagrams):
            one.sendall(b"waited")
        supervisor.pass_on(superd).wait_until_ready()
        for one in (client, local, datagrams):
            assert one.recv(6) == b"waited"
    assert superd.announced[1:] == before[1:]
    assert os.stat(path).st_ino == file
    assert len(supervisor.names()) == 4
    assert superd.status()["state"] == "serving"
    assert superd.stop() == 0
    assert not os.path.lexists(path)


def test_stored_sockets_that_the_configuration_no_longer_has_are_released(
    superd: Superd, supervisor: NotifySocket
) -> None:
    removed, path = superd.address("more"), superd.directory / "echo"
    crash(superd)
    # the stored socket would conflict with the wildcard, and another mode needs a new file
    superd.toml = superd.toml.replace("mode=0600", "mode=0666")
    superd.toml = superd.toml.split("[service.more]")[0]
    superd.toml += f'[service.wild]\nplugin = "echo"\nlisten = "tcp://0.0.0.0:{removed[1]}"\n'
    supervisor.pass_on(superd)
    until(lambda: supervisor.next().get("READY"), "superd to be ready")
    superd.wait_until_ready()
    until(
        lambda: {name.split("/")[1] for name in supervisor.names()} == {"echo", "wild"},
        "other sockets in the store",
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert exchange(socket.create_connection(removed, EVENT_TIMEOUT), b"new") == b"new"
    assert "warning" not in superd.log()


def test_a_stored_unix_socket_whose_file_was_removed_is_not_reused(
    superd: Superd, supervisor: NotifySocket
) -> None:
    path = superd.directory / "echo"
    crash(superd)
    path.unlink()
    supervisor.pass_on(superd)
    until(lambda: supervisor.next().get("READY"), "superd to be ready")
    superd.wait_until_ready()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(EVENT_TIMEOUT)
        client.connect(str(path))
        client.sendall(b"x")
        assert client.recv(1) == b"x"


def test_a_reload_stores_new_sockets_and_removes_old_ones(
    superd: Superd, supervisor: NotifySocket
) -> None:
    text = superd.file.read_text()
    superd.file.write_text(
        text.replace(
            'more]\nplugin = "echo"\nlisten = "tcp', 'new]\nplugin = "echo"\nlisten = "udp'
        )
    )
    supervisor.messages.clear()
    assert superd.run("reload").returncode == 0
    until(lambda: "superd/new" in supervisor.names(), "the new socket")
    assert len(supervisor.names()) == 4
    changes = [(m["FDNAME"], m.get("FDSTORE")) for m in supervisor.messages if "FDNAME" in m]
    assert changes == [("superd/more", None), ("superd/new", "1")]


def test_a_restart_keeps_stored_sockets_without_a_file_and_a_stop_keeps_none(
    superd: Superd, supervisor: NotifySocket
) -> None:
    address = superd.address("echo")
    with superd.connect("echo") as held:  # so that superd drains
        held.sendall(b"x")
        held.recv(1)
        superd.signal(signal.SIGTERM)
        supervisor.wait_for("STOPPING")
        until(lambda: len(supervisor.names()) == 3, "the release of the socket with a file")
        for _ in range(2):  # gives the worker time to stop accepting
            held.sendall(b"x")
            held.recv(1)
        with socket.create_connection(address, EVENT_TIMEOUT) as client:
            held.close()
            assert wait_for_exit(superd) == 0
            client.sendall(b"waited")
            supervisor.pass_on(superd).wait_until_ready()
            assert client.recv(6) == b"waited"
    until(lambda: len(supervisor.names()) == 4, "four sockets in the store")
    assert superd.run("stop").returncode == 0
    assert supervisor.names() == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_failed_start_keeps_the_store_for_the_next_start(
    superd: Superd, supervisor: NotifySocket
) -> None:
    address = superd.address("echo")
    crash(superd)
    good = superd.toml
    superd.toml = '[daemon]\non-bind-failure = "stop"\n' + good
    superd.toml += '[service.bad]\nplugin = "echo"\nlisten = "tcp://192.0.2.77:1"\n'
    supervisor.pass_on(superd)
    assert wait_for_exit(superd) == 1
    assert "does not have the address" in superd.log()
    superd.toml = good
    supervisor.pass_on(superd)
    until(lambda: supervisor.next().get("READY"), "superd to be ready")
    superd.wait_until_ready()
    assert superd.address("echo") == address


def test_superd_stores_no_more_sockets_than_the_store_has_room_for(
    supervisor: NotifySocket, tmp_path: Path
) -> None:
    directory = tmp_path / "small"
    directory.mkdir()
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "FDSTORE": "2"}
    instance = Superd(directory, TOML.format(directory=directory), env=env).start()
    try:
        until(lambda: len(supervisor.names()) == 2, "two sockets in the store")
        assert instance.run("reload").returncode == 0
        supervisor.wait_for("READY")
        assert len(supervisor.names()) == 2
    finally:
        instance.stop()
    shutil.rmtree(directory)


def test_superd_stores_sockets_in_messages_of_hundreds(
    supervisor: NotifySocket, tmp_path: Path
) -> None:
    directory = tmp_path / "many"
    directory.mkdir()
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    listen = f"tcp://{own_host()}:{OWN_PORT}-{OWN_PORT + 599}"
    toml = f'[service.many]\nplugin = "echo"\nlisten = "{listen}"\n'
    instance = Superd(directory, toml, env=env).start()
    try:
        until(lambda: len(supervisor.names()) >= 500, "all sockets in the store")
        assert set(supervisor.names()) == {"superd/many"}
        assert sum("FDSTORE" in message for message in supervisor.messages) == 3
    finally:
        instance.stop()


def test_a_socket_that_is_bound_again_replaces_the_broken_one_in_the_store(
    superd: Superd, supervisor: NotifySocket
) -> None:
    [broken] = [number for name, number in supervisor.stored if name.count("/") == 2]
    with socket.socket(fileno=os.dup(broken)) as shared:
        before = os.fstat(broken).st_ino
        shared.shutdown(socket.SHUT_RDWR)
    superd.wait_for_log("is bound again")
    until(lambda: before not in stored_inodes(supervisor), "the release of the broken socket")
    until(lambda: len(supervisor.names()) == 4, "the new socket in the store")


def stored_inodes(supervisor: NotifySocket) -> set[int]:
    supervisor.receive_pending()
    return {os.fstat(number).st_ino for _, number in supervisor.stored}


@pytest.mark.root
@pytest.mark.tool("ip")
def test_a_slow_service_manager_is_notified_later_and_delays_no_client(tmp_path: Path) -> None:
    with network_namespace() as machine:
        machine.sysctl("net.unix.max_dgram_qlen=2")
        with machine.inside():
            slow = NotifySocket(tmp_path / "slow")
        directory = tmp_path / "told"
        directory.mkdir()
        toml = "".join(
            f'[service.echo-{number}]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n'
            for number in range(12)
        )
        instance = Superd(directory, toml, env={"NOTIFY_SOCKET": str(tmp_path / "slow")}).start()
        try:
            assert exchange(instance.connect("echo-11"), b"hello") == b"hello"
            until(lambda: len(slow.names()) == 12, "all sockets in the store")
            assert [message for message in slow.messages if "READY" in message]
        finally:
            instance.stop()
            slow.close()
