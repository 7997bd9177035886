"""Every kind of address, with real clients: transports, wildcards, ranges, files, options."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from superd.errors import ExitCode
from tests.conftest import Start
from tests.support.clients import ask_unixgram, ask_unixpacket, connect_tcp, connect_unix
from tests.support.harness import (
    EVENT_TIMEOUT,
    Superd,
    ask_udp,
    exchange,
    is_alive,
    make_plugin,
    superd,
    until,
)
from tests.support.namespaces import Namespace, join, network_namespace

NOBODY = 65534
LOCAL = ("127.0.0.1", "[::1]")
UNIX = ("unix", "unixgram", "unixpacket")


@pytest.fixture
def machine() -> Iterator[Namespace]:
    """A network namespace with loopback addresses only."""
    with network_namespace() as space:
        yield space


STOPS = '[daemon]\non-bind-failure = "stop"\n'


def echo(*listen: str, **keys: object) -> str:
    """Return an entry that serves echo."""
    lines = [f"{key.replace('_', '-')} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(
        ["[service.echo]", 'plugin = "echo"', f"listen = {json.dumps(listen)}", *lines]
    )


def assert_echoes_tcp(host: str, port: int) -> None:
    assert exchange(connect_tcp((host, port)), b"hello") == b"hello"


def assert_echoes_udp(host: str, port: int) -> None:
    assert ask_udp((host, port), b"hello") == b"hello"


def assert_echoes_unix(path: str | Path, transport: str) -> None:
    if transport == "unix":
        assert exchange(connect_unix(path), b"hello") == b"hello"
    elif transport == "unixgram":
        assert ask_unixgram(path, b"hello") == b"hello"
    else:
        assert ask_unixpacket(path, b"hello", b"world") == [b"hello", b"world"]


# Transports and addresses


def test_echo_is_served_over_every_transport(start_superd: Start, tmp_path: Path) -> None:
    listen = [f"{transport}://{host}:0" for host in LOCAL for transport in ("tcp", "udp")]
    listen += [f"{transport}://{tmp_path}/{transport}" for transport in UNIX]
    daemon = start_superd(echo(*listen))
    assert [host for host, _ in daemon.addresses("echo")] == ["127.0.0.1", "::1"]
    for address in daemon.addresses("echo"):
        assert_echoes_tcp(*address)
    for address in daemon.addresses("echo", "udp"):
        assert_echoes_udp(*address)
    for transport in UNIX:
        assert_echoes_unix(tmp_path / transport, transport)


def test_superd_prints_the_port_that_the_kernel_chose(start_superd: Start) -> None:
    daemon = start_superd(echo("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"))
    ports = {port for _, port in daemon.addresses("echo")}
    assert len(ports) == 2
    assert 0 not in ports
    for port in ports:
        assert_echoes_tcp("127.0.0.1", port)


@pytest.mark.root
@pytest.mark.tool("ip")
def test_a_star_listens_on_every_ipv4_and_ipv6_address(
    start_superd: Start, machine: Namespace
) -> None:
    for address in ("192.0.2.1/32", "2001:db8::1/128"):
        machine.add_address(address)
    start_superd(echo("tcp://*:7", "udp://*:7"), *machine.wrapper)
    with machine.inside():
        for host in ("127.0.0.1", "127.0.0.9", "192.0.2.1", "::1", "2001:db8::1"):
            assert_echoes_tcp(host, 7)
            assert_echoes_udp(host, 7)


@pytest.mark.root
@pytest.mark.tool("ip")
def test_a_star_listens_on_ipv4_only_if_ipv6_is_switched_off(
    start_superd: Start, machine: Namespace
) -> None:
    machine.sysctl("net.ipv6.conf.all.disable_ipv6=1")
    start_superd(echo("tcp://*:7", "udp://*:7"), *machine.wrapper)
    with machine.inside():
        assert_echoes_tcp("127.0.0.1", 7)
        assert_echoes_udp("127.0.0.1", 7)


# Simulates a kernel without IPv6 for this process and its children: socket(AF_INET6) fails.
WITHOUT_IPV6 = """
import ctypes, os, platform, struct, sys
SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]
AF_INET6, EAFNOSUPPORT = 10, 97
LOAD, EQUALS, RETURN = 0x20, 0x15, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000
program = b"".join(struct.pack("HBBI", *step) for step in (
    (LOAD, 0, 0, 0), (EQUALS, 0, 3, SOCKET), (LOAD, 0, 0, 16), (EQUALS, 0, 1, AF_INET6),
    (RETURN, 0, 0, ERROR | EAFNOSUPPORT), (RETURN, 0, 0, ALLOW),
))
code = ctypes.create_string_buffer(program)
header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, header) == 0
os.execvp(sys.argv[1], sys.argv[1:])
"""


def without_ipv6() -> tuple[str, ...]:
    """Return the wrapper that disables IPv6 sockets; skip the test if it does not work."""
    wrapper = (sys.executable, "-c", WITHOUT_IPV6)
    probe = "import socket; socket.socket(socket.AF_INET6)"
    done = subprocess.run([*wrapper, sys.executable, "-c", probe], capture_output=True, text=True)
    if "not supported by protocol" not in done.stderr:
        pytest.skip("cannot disable IPv6 sockets here")
    return wrapper


def test_a_star_listens_on_ipv4_only_in_a_kernel_without_ipv6(start_superd: Start) -> None:
    daemon = start_superd(echo("tcp://*:0", "udp://*:0"), *without_ipv6())
    assert [host for host, _ in daemon.addresses("echo")] == ["0.0.0.0"]
    assert_echoes_tcp("127.0.0.1", daemon.address("echo")[1])
    assert_echoes_udp("127.0.0.1", daemon.address("echo", "udp")[1])


def test_an_ipv6_address_in_a_kernel_without_ipv6_is_an_error(tmp_path: Path) -> None:
    daemon = Superd(tmp_path, STOPS + echo("tcp://127.0.0.1:0", "tcp://[::1]:0"))
    with pytest.raises(AssertionError, match=r"tcp://\[::1\]:0: this machine has no IPv6"):
        daemon.start(*without_ipv6())
    assert daemon.stop() == ExitCode.FAILED


@pytest.mark.root
@pytest.mark.tool("ip")
def test_superd_listens_on_service_names_and_port_ranges(
    start_superd: Start, machine: Namespace
) -> None:
    listen = ("tcp://127.0.0.1:finger", "udp://127.0.0.1:daytime", "tcp://127.0.0.1:7100-7109")
    start_superd(echo(*listen), *machine.wrapper)
    with machine.inside():
        for port in (79, *range(7100, 7110)):
            assert_echoes_tcp("127.0.0.1", port)
        assert_echoes_udp("127.0.0.1", 13)
        with pytest.raises(ConnectionRefusedError):
            connect_tcp(("127.0.0.1", 7110))


@pytest.mark.root
@pytest.mark.tool("ip")
def test_superd_listens_on_abstract_unix_addresses(start_superd: Start, machine: Namespace) -> None:
    start_superd(echo(*(f"{transport}://@{transport}" for transport in UNIX)), *machine.wrapper)
    with machine.inside():
        for transport in UNIX:
            assert_echoes_unix(f"\0{transport}", transport)


@pytest.mark.root
@pytest.mark.tool("ip")
def test_free_bind_listens_on_an_address_that_the_machine_does_not_have_yet(
    start_superd: Start, machine: Namespace
) -> None:
    hosts = ("198.51.100.7", "[2001:db8::7]")
    listen = [f"{transport}://{host}:7" for host in hosts for transport in ("tcp", "udp")]
    start_superd(echo(*listen, free_bind=True), *machine.wrapper)
    for host, length in (("198.51.100.7", 32), ("2001:db8::7", 128)):
        with machine.inside(), pytest.raises(OSError, match="unreachable"):
            connect_tcp((host, 7))
        machine.add_address(f"{host}/{length}")
        with machine.inside():
            assert_echoes_tcp(host, 7)
            assert_echoes_udp(host, 7)


def test_the_error_for_an_address_that_the_machine_does_not_have_names_free_bind(
    tmp_path: Path,
) -> None:
    daemon = Superd(tmp_path, STOPS + echo("tcp://198.51.100.7:7007", "tcp://127.0.0.1:0"))
    done = superd("run", "-c", str(daemon.write()))
    assert done.returncode == ExitCode.FAILED
    assert done.stderr.strip() == (
        f"superd: {daemon.file}:9:11: service.echo.listen[0]: cannot listen on"
        " tcp://198.51.100.7:7007: this machine does not have the address;"
        " free-bind = true listens nevertheless"
    )


@pytest.mark.root
@pytest.mark.tool("ip")
def test_a_service_with_a_device_cannot_be_reached_through_another_device(
    start_superd: Start, machine: Namespace
) -> None:
    with network_namespace() as neighbour:
        join(machine, neighbour)
        machine.add_address("192.0.2.1/24", "wire")
        neighbour.add_address("192.0.2.2/24", "wire")
        start_superd(echo("tcp://*:7", "udp://*:7", device="wire"), *machine.wrapper)
        with neighbour.inside():
            assert_echoes_tcp("192.0.2.1", 7)
            assert_echoes_udp("192.0.2.1", 7)
    with machine.inside(), pytest.raises(ConnectionRefusedError):
        connect_tcp(("127.0.0.1", 7))


# What accepted connections inherit

INSPECTOR = """
    import json, socket
    from superd.plugin import Service, hookimpl

    class Inspector(Service):
        name = "inspector"

        async def takeover(self, sock, conn):
            found = {
                "keepalive": sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                "nodelay": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
                "timeout": sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16).hex(),
            }
            sock.send(json.dumps(found).encode())

    @hookimpl
    def superd_services():
        return [Inspector]
"""


@pytest.mark.parametrize("wanted", [True, False])
def test_keepalive_and_nodelay_reach_accepted_connections(
    start_superd: Start, tmp_path: Path, wanted: bool
) -> None:
    value = json.dumps(wanted)
    daemon = start_superd(
        f"""
        [service.inspector]
        plugin = "inspector"
        listen = ["tcp://127.0.0.1:0", "tcp://[::1]:0"]
        keepalive = {value}
        nodelay = {value}
        """,
        env=make_plugin(tmp_path / "plugins", "inspector", INSPECTOR),
    )
    for address in daemon.addresses("inspector"):
        found = json.loads(exchange(connect_tcp(address), b""))
        assert (found["keepalive"], found["nodelay"]) == (wanted, wanted)
        assert found["timeout"] == bytes(16).hex(), "the accepted socket has a receive timeout"


@pytest.mark.tool("ss")
def test_the_listener_has_the_configured_backlog(start_superd: Start, tmp_path: Path) -> None:
    daemon = start_superd(echo("tcp://127.0.0.1:0", f"unix://{tmp_path}/echo", backlog=77))
    where = f"127.0.0.1:{daemon.address('echo')[1]}"
    for option, name in (("-t", where), ("-x", f"{tmp_path}/echo")):
        done = subprocess.run(["ss", "-lnH", option], capture_output=True, text=True, check=True)
        (line,) = [line for line in done.stdout.splitlines() if name in line]
        columns = line.split()
        assert columns[columns.index("LISTEN") + 2] == "77"


def test_a_backlog_beyond_the_limit_of_the_kernel_is_logged(start_superd: Start) -> None:
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    if most >= 65535:
        pytest.skip("this kernel's limit is higher than any backlog")
    daemon = start_superd(echo("tcp://127.0.0.1:0", backlog=most + 1))
    daemon.wait_for_log(rf"backlog is {most + 1}, but /proc/sys/net/core/somaxconn is {most}")


@pytest.mark.root
@pytest.mark.tool("ip")
@pytest.mark.parametrize(("backlog", "overflows"), [(4096, False), (5, True)])
def test_pending_connections_wait_in_the_backlog_while_the_worker_is_stopped(
    start_superd: Start, machine: Namespace, backlog: int, overflows: bool
) -> None:
    daemon = start_superd(echo("tcp://127.0.0.1:7", backlog=backlog), *machine.wrapper)
    (worker,) = daemon.workers()
    with contextlib.ExitStack() as stack, machine.inside():
        os.kill(worker, signal.SIGSTOP)
        clients = [stack.enter_context(socket.socket()) for _ in range(1000)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", 7))
        dropped = Path("/proc/thread-self/net/netstat").read_text()
        os.kill(worker, signal.SIGCONT)
        assert (listen_overflows(dropped) > 0) is overflows
        for client in clients if not overflows else clients[:5]:
            client.settimeout(EVENT_TIMEOUT)
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"


def listen_overflows(netstat: str) -> int:
    """Return how often an accept queue overflowed, from /proc/net/netstat."""
    names, values = (line.split() for line in netstat.splitlines() if line.startswith("TcpExt:"))
    return int(dict(zip(names, values, strict=True))["ListenOverflows"])


@pytest.mark.soak
@pytest.mark.root
@pytest.mark.tool("ip")
def test_ten_thousand_connections_are_served_without_an_overflow_of_the_backlog(
    start_superd: Start, machine: Namespace
) -> None:
    start_superd(echo("tcp://127.0.0.1:7"), *machine.wrapper)
    number, concurrency = 10_000, 256
    taken: list[float] = []

    async def talk(turns: Iterator[int]) -> None:
        for _ in turns:
            started = time.monotonic()
            reader, writer = await asyncio.open_connection("127.0.0.1", 7)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            await writer.wait_closed()
            taken.append(time.monotonic() - started)

    async def run_all() -> None:
        turns = iter(range(number))
        await asyncio.gather(*(talk(turns) for _ in range(concurrency)))

    with machine.inside():
        asyncio.run(run_all())
        assert listen_overflows(Path("/proc/thread-self/net/netstat").read_text()) == 0
    assert len(taken) == number
    assert max(taken) < 1, "a SYN was lost, which is sent again after a second"


# Files of unix sockets


def entry_with_files(directory: Path) -> str:
    """Return an entry with a socket file of each kind; the names are the transports."""
    return echo(*(f"{transport}://{directory}/{transport}" for transport in UNIX))


@pytest.mark.root
def test_a_socket_file_has_the_configured_mode_user_and_group(
    start_superd: Start, tmp_path: Path
) -> None:
    path = tmp_path / "echo"
    start_superd(echo(f"unix://{path}?mode=0660&user=nobody&group=daemon"))
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert (status.st_uid, status.st_gid) == (NOBODY, 1)
    assert_echoes_unix(path, "unix")


def test_socket_files_of_a_killed_superd_are_replaced(start_superd: Start, tmp_path: Path) -> None:
    killed = start_superd(entry_with_files(tmp_path))
    workers = killed.workers()
    killed.signal(signal.SIGKILL)
    killed.wait()
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    until(lambda: not any(map(is_alive, workers)), "the end of the workers")
    assert all((tmp_path / transport).is_socket() for transport in UNIX)
    start_superd(entry_with_files(tmp_path))
    for transport in UNIX:
        assert_echoes_unix(tmp_path / transport, transport)


def test_socket_files_in_use_are_not_replaced(start_superd: Start, tmp_path: Path) -> None:
    daemon_pid = start_superd(entry_with_files(tmp_path)).pid
    before = [(tmp_path / transport).stat().st_ino for transport in UNIX]
    second = Superd(tmp_path / "second", entry_with_files(tmp_path))
    second.directory.mkdir()
    done = superd("run", "-c", str(second.write()))
    assert done.returncode == ExitCode.ADDRESS_IN_USE
    for transport in UNIX:
        where = f"{transport}://{tmp_path}/{transport}"
        assert where in done.stderr
        assert f"the address is in use by process {daemon_pid} (superd" in done.stderr
        assert_echoes_unix(tmp_path / transport, transport)
    assert [(tmp_path / transport).stat().st_ino for transport in UNIX] == before


def test_a_regular_file_at_a_socket_path_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "echo"
    path.write_text("precious")
    daemon = Superd(tmp_path, echo(f"unix://{path}"))
    done = superd("run", "-c", str(daemon.write()))
    assert done.returncode == ExitCode.FAILED
    assert f"unix://{path}: the file there is not a socket; remove it" in done.stderr
    assert path.read_text() == "precious"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_socket_files_are_removed_when_superd_stops(
    start_superd: Start, tmp_path: Path, number: signal.Signals
) -> None:
    daemon = start_superd(entry_with_files(tmp_path))
    assert all((tmp_path / transport).is_socket() for transport in UNIX)
    daemon.signal(number)
    assert daemon.wait() == ExitCode.OK
    assert not any((tmp_path / transport).exists() for transport in UNIX)


def test_a_socket_file_of_another_program_is_not_removed(
    start_superd: Start, tmp_path: Path
) -> None:
    path = tmp_path / "echo"
    daemon = start_superd(echo(f"unix://{path}"))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == ExitCode.OK
        assert path.is_socket()


# Addresses in use


def test_a_second_superd_fails_and_names_the_addresses_in_use(
    start_superd: Start, tmp_path: Path
) -> None:
    first = start_superd(echo("tcp://127.0.0.1:0", "udp://127.0.0.1:0", "tcp://[::1]:0"))
    taken = [line.split()[1] for line in first.announced if "://" in line and "try:" in line]
    assert len(taken) == 3
    with first.connect("echo") as session:
        second = Superd(tmp_path / "second", STOPS + echo("tcp://127.0.0.1:0", *taken))
        second.directory.mkdir()
        done = superd("run", "-c", str(second.write()))
        assert done.returncode == ExitCode.ADDRESS_IN_USE
        for address in taken:
            assert address in done.stderr
        assert f"the address is in use by process {first.pid} (superd" in done.stderr
        assert "Traceback" not in done.stderr
        session.sendall(b"still there")
        assert session.recv(100) == b"still there"
    assert_echoes_tcp(*first.address("echo"))
    assert_echoes_udp(*first.address("echo", "udp"))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_port_in_use_by_another_program_is_named_in_the_error(
    tmp_path: Path, kind: socket.SocketKind
) -> None:
    transport = "tcp" if kind == socket.SOCK_STREAM else "udp"
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("0.0.0.0", 0))
        if kind == socket.SOCK_STREAM:
            other.listen()
        address = f"{transport}://127.0.0.1:{other.getsockname()[1]}"
        daemon = Superd(tmp_path, echo(address))
        done = superd("run", "-c", str(daemon.write()))
    assert done.returncode == ExitCode.ADDRESS_IN_USE
    where = f"service.echo.listen[0]: cannot listen on {address}"
    assert f"{where}: the address is in use by process {os.getpid()} (" in done.stderr


def test_an_address_can_be_bound_again_when_superd_has_stopped(start_superd: Start) -> None:
    first = start_superd(echo("tcp://127.0.0.1:0"))
    host, port = first.address("echo")
    for _ in range(100):
        assert_echoes_tcp(host, port)
    first.stop()
    start_superd(echo(f"tcp://{host}:{port}"))
    assert_echoes_tcp(host, port)
