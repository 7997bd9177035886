"""Socket activation: listening sockets that are passed to superd (sd_listen_fds(3))."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import EVENT_TIMEOUT, Superd, ask_udp, exchange, until
from tests.support.passing import launch_with_sockets
from tests.support.ports import free_port

ECHO = """
[service.echo]
plugin = "echo"
listen = "{listen}"
"""
CLOSED = "no service listens there, so it is closed; add it to listen of a service"


@pytest.fixture
def superds(tmp_path: Path) -> Iterator[list[Superd]]:
    """A list of all superds of a test, which the fixture stops."""
    started: list[Superd] = []
    yield started
    for instance in started:
        instance.stop()
        print(f"--- log of {instance.file}\n{instance.log()}")


def superd_of(superds: list[Superd], directory: Path, toml: str) -> Superd:
    made = directory / f"superd-{len(superds)}"
    made.mkdir()
    superds.append(Superd(made, toml))
    return superds[-1]


@contextlib.contextmanager
def bound(
    sockaddr: object, kind: socket.SocketKind = socket.SOCK_STREAM, *, both: bool = False
) -> Iterator[socket.socket]:
    """Bind and listen as systemd does."""
    family = socket.AF_INET
    if isinstance(sockaddr, str):
        family = socket.AF_UNIX
    elif isinstance(sockaddr, tuple) and ":" in sockaddr[0]:
        family = socket.AF_INET6
    with socket.socket(family, kind) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        sock.bind(sockaddr)  # type: ignore[arg-type]
        if kind != socket.SOCK_DGRAM:
            sock.listen(8)
        yield sock


def echoes(address: object) -> bool:
    """Return whether a service at an address echoes."""
    if isinstance(address, str):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(EVENT_TIMEOUT)
            client.connect(address)
            client.sendall(b"hello")
            return client.recv(5) == b"hello"
    assert isinstance(address, tuple)
    return exchange(socket.create_connection(address[:2], EVENT_TIMEOUT), b"hello") == b"hello"


def test_superd_serves_passed_sockets_and_binds_the_other_addresses(
    superds: list[Superd], tmp_path: Path
) -> None:
    with bound(("127.0.0.1", 0)) as given:
        port = given.getsockname()[1]
        # connects before superd starts, and is served by it
        early = socket.create_connection(("127.0.0.1", port), EVENT_TIMEOUT)
        listen = f'["tcp://127.0.0.1:{port}", "tcp://127.0.0.1:0"]'
        superd = superd_of(superds, tmp_path, ECHO.replace('"{listen}"', listen))
        launch_with_sockets(superd, [given.fileno()]).wait_until_ready()
    assert exchange(early, b"early") == b"early"
    addresses = superd.addresses("echo")
    assert addresses[0] == ("127.0.0.1", port)
    assert all(echoes(address) for address in addresses)
    assert "warning" not in superd.log()


@pytest.mark.parametrize("names", [["echo"], ["superd.socket"], []])
def test_a_passed_socket_is_matched_by_name_or_by_address(
    superds: list[Superd], tmp_path: Path, names: list[str]
) -> None:
    with bound(("127.0.0.1", 0), socket.SOCK_DGRAM) as given:
        port = given.getsockname()[1]
        superd = superd_of(superds, tmp_path, ECHO.format(listen=f"udp://127.0.0.1:{port}"))
        launch_with_sockets(superd, [given.fileno()], names).wait_until_ready()
    assert ask_udp(("127.0.0.1", port), b"hello") == b"hello"
    assert "warning" not in superd.log()


@pytest.mark.parametrize("transport", ["unix", "unixgram", "unixpacket"])
def test_superd_does_not_remove_the_file_of_a_passed_unix_socket(
    superds: list[Superd], tmp_path: Path, transport: str
) -> None:
    kind = {"unix": socket.SOCK_STREAM, "unixgram": socket.SOCK_DGRAM}.get(
        transport, socket.SOCK_SEQPACKET
    )
    with tempfile.TemporaryDirectory() as name, bound(f"{name}/echo", kind) as given:
        superd = superd_of(superds, tmp_path, ECHO.format(listen=f"{transport}://{name}/echo"))
        launch_with_sockets(superd, [given.fileno()]).wait_until_ready()
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.settimeout(EVENT_TIMEOUT)
            client.bind(f"{name}/client")
            os.chmod(f"{name}/client", 0o777)
            os.chmod(name, 0o755)
            client.connect(f"{name}/echo")
            client.send(b"hello")
            assert client.recv(5) == b"hello"
        assert superd.run("reload").returncode == 0
        assert superd.stop() == 0
        assert Path(name, "echo").is_socket()


def test_a_passed_socket_for_ipv4_and_ipv6_serves_a_star(
    superds: list[Superd], tmp_path: Path
) -> None:
    with (
        bound(("::", 0), both=True) as given,
        bound(("::", given.getsockname()[1]), socket.SOCK_DGRAM, both=True) as datagrams,
    ):
        port = given.getsockname()[1]
        toml = f'["tcp://*:{port}", "udp://*:{port}"]\ndeny = "127.0.0.2"'
        superd = superd_of(superds, tmp_path, ECHO.replace('"{listen}"', toml))
        # sent before superd has set the socket options that report a datagram's destination
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as early:
            early.settimeout(EVENT_TIMEOUT)
            early.connect(("127.0.0.1", port))
            early.send(b"early")
            launch_with_sockets(superd, [given.fileno(), datagrams.fileno()]).wait_until_ready()
            assert early.recv(5) == b"early"
    for host in ("127.0.0.1", "::1", "127.0.0.3"):
        assert echoes((host, port))
        assert ask_udp((host, port), b"hello") == b"hello"
    assert superd.answer()["services"][0]["listen"] == [f"tcp://[::]:{port}", f"udp://[::]:{port}"]
    with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0)) as denied:
        until(lambda: superd.counts("echo")["refused-access"] == 1, "the refusal")
        assert denied.getsockname()
    assert superd.run("reload").returncode == 0
    assert echoes(("127.0.0.1", port))
    assert "warning" not in superd.log()


def test_a_passed_socket_that_accepts_more_than_its_address_is_logged(
    superds: list[Superd], tmp_path: Path
) -> None:
    with bound(("::", 0), both=True) as given:
        port = given.getsockname()[1]
        superd = superd_of(superds, tmp_path, ECHO.format(listen=f"tcp://[::]:{port}"))
        launch_with_sockets(superd, [given.fileno()]).wait_until_ready()
    notice = f"tcp://[::]:{port} of the socket unit accepts IPv4, too; set BindIPv6Only=ipv6-only"
    assert notice in superd.log()


def test_a_socket_passed_by_name_replaces_another_address(
    superds: list[Superd], tmp_path: Path
) -> None:
    with bound(("127.0.0.1", 0)) as given, bound(("127.0.0.1", 0)) as listed:
        port, other = given.getsockname()[1], listed.getsockname()[1]
        listed.close()
        superd = superd_of(superds, tmp_path, ECHO.format(listen=f"tcp://127.0.0.1:{other}"))
        launch_with_sockets(superd, [given.fileno()], ["echo"]).wait_until_ready()
    assert echoes(("127.0.0.1", port))
    assert superd.addresses("echo") == [("127.0.0.1", port)]
    assert (
        f"service.echo: listens on tcp://127.0.0.1:{port}"
        f" (descriptor 3, named echo), from its socket unit, instead of tcp://127.0.0.1:{other},"
        " from listen"
    ) in superd.log()
    assert superd.run("reload").returncode == 0
    assert echoes(("127.0.0.1", port))


def test_a_passed_socket_without_a_service_is_closed(superds: list[Superd], tmp_path: Path) -> None:
    superd = superd_of(superds, tmp_path, ECHO.format(listen="tcp://127.0.0.1:0"))
    with (
        bound(("127.0.0.1", 0)) as web,
        bound(("127.0.0.1", 0), socket.SOCK_DGRAM) as datagrams,
    ):
        numbers = [web.fileno(), datagrams.fileno()]
        launch_with_sockets(superd, numbers, ["web.socket", "echo"]).wait_until_ready()
        ports = [sock.getsockname()[1] for sock in (web, datagrams)]
    shown = [
        f"tcp://127.0.0.1:{ports[0]} (descriptor 3, named web.socket)",
        f"udp://127.0.0.1:{ports[1]} (descriptor 4, named echo)",
    ]
    for address in shown:
        assert f"{address} was passed to superd, but {CLOSED}" in superd.log()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]))


def test_a_passed_socket_that_prevents_the_start_is_logged(
    superds: list[Superd], tmp_path: Path
) -> None:
    with bound(("::", 0), both=True) as given:
        port = given.getsockname()[1]
        superd = superd_of(superds, tmp_path, ECHO.format(listen=f"tcp://0.0.0.0:{port}"))
        launch_with_sockets(superd, [given.fileno()])
        assert superd.wait() == 69
    assert f"tcp://[::]:{port} (descriptor 3) was passed to superd, but {CLOSED}" in superd.log()


def test_sockets_for_another_process_are_ignored(superds: list[Superd], tmp_path: Path) -> None:
    with bound(("127.0.0.1", 0)) as given:
        superd = superd_of(superds, tmp_path, ECHO.format(listen="tcp://127.0.0.1:0"))
        launch_with_sockets(superd, [given.fileno()], pid="1").wait_until_ready()
        assert superd.addresses("echo") != [given.getsockname()]
    assert "warning" not in superd.log()


def test_programs_inherit_neither_passed_sockets_nor_their_variables(
    superds: list[Superd], tmp_path: Path
) -> None:
    toml = """
    [service.env]
    plugin = "exec"
    listen = "tcp://127.0.0.1:0"
    options.command = ["/bin/sh", "-c", "env; ls /proc/self/fd"]
    options.pass-env = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"]
    """
    superd = superd_of(superds, tmp_path, toml)
    with bound(("127.0.0.1", 0)) as given:
        launch_with_sockets(superd, [given.fileno()], ["env"]).wait_until_ready()
        with superd.connect("env") as client:
            shown = client.makefile().read().split("\n")
    assert not [line for line in shown if line.startswith("LISTEN_")]
    assert {"0", "1", "2"} <= set(shown)
    assert not {"4", "5", "6"} & set(shown)  # ls opens the directory as 3


def test_passed_descriptors_that_are_not_listening_sockets_are_closed_and_logged(
    superds: list[Superd], tmp_path: Path
) -> None:
    superd = superd_of(superds, tmp_path, ECHO.format(listen="tcp://127.0.0.1:0"))
    with (
        open(tmp_path / "file", "w") as file,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as idle,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink,
    ):
        idle.bind(("127.0.0.1", 0))
        numbers = [file.fileno(), idle.fileno(), netlink.fileno()]
        names = ["a\x1b[31mfile", "idle", "netlink"]
        launch_with_sockets(superd, numbers, names).wait_until_ready()
    log = superd.log()
    assert r"descriptor 3, named a\x1b[31mfile was passed to superd, but is not a socket" in log
    assert "named idle was passed to superd, but tcp://127.0.0.1:" in log
    assert "does not listen; it is closed" in log
    assert "named netlink was passed to superd, but is neither tcp nor udp nor a unix" in log
    assert echoes(superd.address("echo"))


@pytest.mark.parametrize("count", ["2", "-1", "3x", "99999999999999999999", "", "9999999"])
def test_a_wrong_number_of_descriptors_is_logged(
    superds: list[Superd], tmp_path: Path, count: str
) -> None:
    superd = superd_of(superds, tmp_path, ECHO.format(listen="tcp://127.0.0.1:0"))
    script = 'LISTEN_PID=$$ LISTEN_FDS="$0" exec "$@"'
    superd.start("/bin/sh", "-c", script, count)
    wrong = "descriptor 4 was passed to superd, but is not open"
    if count != "2":
        wrong = f'expected the number of passed descriptors in LISTEN_FDS, not "{count}"'
    assert wrong in superd.log()
    assert echoes(superd.address("echo"))


def test_superd_refuses_to_start_with_a_single_passed_connection(
    superds: list[Superd], tmp_path: Path
) -> None:
    with (
        bound(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as accepted,
    ):
        superd = superd_of(superds, tmp_path, ECHO.format(listen="tcp://127.0.0.1:0"))
        launch_with_sockets(superd, [accepted.fileno()], ["connection"])
        assert client.getsockname()
        assert superd.wait() == 2
    assert (
        "descriptor 3, named connection is a connection, but superd accepts connections itself"
        in superd.log()
    )
    assert "Accept=no" in superd.log()


@pytest.mark.parametrize("kind", ["tcp", "udp", "unix"])
@pytest.mark.tool("systemd-socket-activate")
def test_superd_serves_the_first_client_of_systemd_socket_activate(
    superds: list[Superd], tmp_path: Path, kind: str
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        port = free_port()
        where = f"{directory}/echo" if kind == "unix" else f"127.0.0.1:{port}"
        superd = superd_of(superds, tmp_path, ECHO.format(listen=f"{kind}://{where}"))
        options = ["--datagram"] if kind == "udp" else []
        superd.launch("systemd-socket-activate", *options, "-l", where, "--fdname=echo")
        superd.wait_for_log("Listening on")
        if kind == "udp":
            assert ask_udp(("127.0.0.1", port), b"hello") == b"hello"
        else:
            assert echoes(where if kind == "unix" else ("127.0.0.1", port))
        superd.wait_until_ready()
        assert "warning" not in superd.log()
        assert superd.stop() == 0


@pytest.mark.tool("systemd-socket-activate")
def test_superd_refuses_to_start_with_accept_of_systemd_socket_activate(
    superds: list[Superd], tmp_path: Path
) -> None:
    port = free_port()
    superd = superd_of(superds, tmp_path, ECHO.format(listen=f"tcp://127.0.0.1:{port}"))
    superd.launch("systemd-socket-activate", "--accept", "-l", f"127.0.0.1:{port}")
    superd.wait_for_log("Listening on")
    with socket.create_connection(("127.0.0.1", port), EVENT_TIMEOUT):
        superd.wait_for_log("Accept=no")
    assert superd.process is not None
    superd.process.kill()
