"""Listening sockets: binding, adopting and repairing them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from superd.config.model import Service
from superd.errors import SuperdError
from superd.listen.adopting import adopt
from superd.listen.failures import CannotListen
from superd.listen.inherited import Inheritance, Inherited, match
from superd.listen.listener import Listener
from superd.listen.listeners import listen, listen_again, reopen
from superd.listen.names import Answer
from superd.net.addresses import Transport, parse_addresses
from tests.support.harness import until
from tests.support.ports import free_port, free_range

NOBODY = 65534
UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
UNIX_KINDS = ("unix", "unixgram", "unixpacket")

Listen = Callable[..., list[Listener]]


def service(*addresses: str, **keys: object) -> Service:
    return Service.model_validate({"plugin": "echo", "listen": list(addresses), **keys})


@pytest.fixture
def listening() -> Iterator[Listen]:
    """Return a function that listens on addresses as one service or several."""
    with contextlib.ExitStack() as stack:

        def start(*addresses: str, **keys: object) -> list[Listener]:
            listeners = listen({"echo": service(*addresses, **keys)})
            for listener in listeners:
                stack.callback(listener.close)
            return listeners

        yield start


def is_answering(path: Path, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_UNIX, kind) as client:
        return client.connect_ex(str(path)) == 0


def kind_of(transport: str) -> socket.SocketKind:
    return Transport(transport).socket_type


def leave_socket_file(path: Path, kind: socket.SocketKind) -> None:
    """Leave a socket's file behind, as a killed process does."""
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(str(path))


# What is bound


def test_a_star_binds_one_socket_for_ipv4_and_one_for_ipv6(listening: Listen) -> None:
    port = free_port()
    listeners = listening(f"tcp://*:{port}", f"udp://*:{port}")
    assert [str(listener.address) for listener in listeners] == [
        f"tcp://0.0.0.0:{port}",
        f"tcp://[::]:{port}",
        f"udp://0.0.0.0:{port}",
        f"udp://[::]:{port}",
    ]
    for listener in listeners[1::2]:
        only = listener.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        assert only == 1, "else an IPv4 client could have two addresses"


def test_port_0_becomes_the_port_that_the_kernel_chose(listening: Listen) -> None:
    tcp, udp = listening("tcp://127.0.0.1:0", "udp://[::1]:0")
    assert tcp.address.port == tcp.socket.getsockname()[1] > 0
    assert udp.address.port == udp.socket.getsockname()[1] > 0


def test_sockets_do_not_block_and_are_not_inherited(listening: Listen, tmp_path: Path) -> None:
    unix = [f"{transport}://{tmp_path}/{transport}" for transport in UNIX_KINDS]
    for listener in listening("tcp://127.0.0.1:0", "udp://127.0.0.1:0", *unix):
        assert fcntl.fcntl(listener.socket, fcntl.F_GETFL) & os.O_NONBLOCK
        assert fcntl.fcntl(listener.socket, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_every_address_in_use_is_named_and_no_socket_is_kept(
    listening: Listen, tmp_path: Path
) -> None:
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        taken = [server.getsockname()[1] for server in (first, second)]
        with pytest.raises(CannotListen) as caught:
            listening(
                f"tcp://127.0.0.1:{port}",
                f"unix://{tmp_path}/echo",
                *(f"tcp://127.0.0.1:{number}" for number in taken),
            )
    (line,) = str(caught.value).splitlines()
    first, second = sorted(taken)
    ports = f"{first}-{second} (2 ports)" if second == first + 1 else None
    both = f"tcp://127.0.0.1:{ports or first}" + ("" if ports else f", tcp://127.0.0.1:{second}")
    assert line.startswith(f"service.echo: cannot listen on {both}: the address is in use by")
    assert f"process {os.getpid()} (" in line
    assert not list(tmp_path.iterdir())
    listening(f"tcp://127.0.0.1:{port}")


def test_an_address_in_use_is_named_whether_it_shares_its_port_or_not(listening: Listen) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.2", 0)) as two,
    ):
        alone, shared = one.getsockname()[1], two.getsockname()[1]
        with pytest.raises(CannotListen) as caught:
            listening(
                f"tcp://127.0.0.1:{alone}", f"tcp://127.0.0.2:{shared}", f"tcp://0.0.0.0:{shared}"
            )
    assert {str(failure.address) for failure in caught.value.failures} == {
        f"tcp://127.0.0.1:{alone}",
        f"tcp://127.0.0.2:{shared}",
        f"tcp://0.0.0.0:{shared}",
    }


def test_a_shared_address_in_use_is_the_only_error_beside_a_kept_listener(
    listening: Listen,
) -> None:
    kept = f"tcp://127.0.0.1:{free_port()}"
    existing = listening(kept)
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        shared = service(f"tcp://127.0.0.2:{port}", f"tcp://127.0.0.3:{port}", f"tcp://*:{port}")
        with pytest.raises(CannotListen) as caught:
            listen({"shared": shared, "echo": service(kept)}, existing)
    assert kept not in str(caught.value)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_services_share_a_port_at_different_local_addresses(
    listening: Listen, transport: str
) -> None:
    port = free_port()
    hosts = ("127.0.0.2", "*", "127.0.0.3", "[::1]")
    listeners = listening(*(f"{transport}://{host}:{port}" for host in hosts))
    assert len(listeners) == 5


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("second", ["127.0.0.2", "0.0.0.0", "*", "127.0.0.3"])
def test_a_shared_port_is_not_shared_with_another_superd(
    listening: Listen, transport: str, second: str
) -> None:
    port = free_port()
    listening(f"{transport}://127.0.0.2:{port}", f"{transport}://*:{port}")
    with pytest.raises(CannotListen, match=str(port)):
        listening(f"{transport}://{second}:{port}")
    with pytest.raises(CannotListen, match=str(port)):
        listening(f"{transport}://127.0.0.2:{port}", f"{transport}://*:{port}")


def test_an_address_that_another_process_bound_but_does_not_listen_on_is_taken(
    listening: Listen,
) -> None:
    with socket.socket() as early:
        early.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        early.bind(("127.0.0.1", 0))
        port = early.getsockname()[1]
        listening(f"tcp://127.0.0.1:{port}")
        with pytest.raises(OSError, match="in use"):
            early.listen()


def test_a_missing_address_is_reported_with_the_remedy(listening: Listen) -> None:
    with pytest.raises(SuperdError, match=r"does not have the address; free-bind = true"):
        listening("tcp://198.51.100.7:0")
    listening("tcp://198.51.100.7:0", "udp://[2001:db8::7]:0", **{"free-bind": True})


def test_a_missing_network_interface_is_named(listening: Listen) -> None:
    with pytest.raises(SuperdError, match=r'no network interface "nowhere0"'):
        listening("tcp://127.0.0.1:0", device="nowhere0")


def test_a_missing_directory_is_named(listening: Listen) -> None:
    with pytest.raises(SuperdError, match=r"unix:///nowhere/echo: No such file or directory"):
        listening("unix:///nowhere/echo")


# Files of unix sockets


@pytest.mark.parametrize("transport", UNIX_KINDS)
def test_a_socket_file_has_the_mode_of_the_entry(
    listening: Listen, tmp_path: Path, transport: str
) -> None:
    listening(f"{transport}://{tmp_path}/any", f"{transport}://{tmp_path}/few?mode=0640")
    assert stat.S_IMODE((tmp_path / "any").stat().st_mode) == 0o666
    assert stat.S_IMODE((tmp_path / "few").stat().st_mode) == 0o640


def test_the_mode_of_the_entry_overrides_a_default_acl(listening: Listen, tmp_path: Path) -> None:
    owner, group, others, unnamed = 0x01, 0x04, 0x20, 0xFFFFFFFF
    rights = ((owner, 0o7), (group, 0), (others, 0))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *one, unnamed) for one in rights)
    try:
        os.setxattr(tmp_path, "system.posix_acl_default", acl)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")
    listening(f"unix://{tmp_path}/echo?mode=0660")
    assert stat.S_IMODE((tmp_path / "echo").stat().st_mode) == 0o660


def test_the_umask_stays_as_it_was(listening: Listen, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        listening(f"unix://{tmp_path}/echo?mode=0600")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


@pytest.mark.root
def test_a_socket_file_has_the_owner_of_the_entry(listening: Listen, tmp_path: Path) -> None:
    listening(f"unix://{tmp_path}/echo?mode=0600&user={NOBODY}&group=1")
    status = (tmp_path / "echo").stat()
    assert (status.st_uid, status.st_gid) == (NOBODY, 1)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other users may search, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="superd-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.root
@pytest.mark.parametrize("transport", UNIX_KINDS)
def test_no_other_user_can_connect_before_the_mode_is_set(
    open_directory: Path, transport: str
) -> None:
    path = open_directory / "private"
    stranger = os.fork()
    if stranger == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            while not is_answering(path, kind_of(transport)):
                pass
        finally:
            os._exit(9)
    try:
        for _ in range(300):
            address = f"{transport}://{path}?mode=0600"
            for listener in listen({"echo": service(address)}):
                listener.close()
        assert os.waitpid(stranger, os.WNOHANG) == (0, 0), "another user could connect"
        # the stranger does try: with mode 0666 it succeeds
        listeners = listen({"echo": service(f"{transport}://{path}?mode=0666")})
        until(lambda: os.waitpid(stranger, os.WNOHANG)[0], "the stranger's success")
        for listener in listeners:
            listener.close()
        stranger = 0
    finally:
        if stranger:
            os.kill(stranger, signal.SIGKILL)
            os.waitpid(stranger, 0)


@pytest.mark.parametrize("transport", UNIX_KINDS)
def test_a_socket_file_left_by_a_crash_is_replaced(
    listening: Listen, tmp_path: Path, transport: str
) -> None:
    path = tmp_path / "echo"
    leave_socket_file(path, kind_of(transport))
    listening(f"{transport}://{path}")
    assert is_answering(path, kind_of(transport))


def test_a_socket_file_left_by_another_transport_is_replaced(
    listening: Listen, tmp_path: Path
) -> None:
    leave_socket_file(tmp_path / "echo", socket.SOCK_DGRAM)
    listening(f"unix://{tmp_path}/echo")
    assert is_answering(tmp_path / "echo", socket.SOCK_STREAM)


@pytest.mark.parametrize("transport", UNIX_KINDS)
@pytest.mark.parametrize("owner", UNIX_KINDS)
def test_a_socket_file_in_use_is_left_alone(
    listening: Listen, tmp_path: Path, transport: str, owner: str
) -> None:
    path = tmp_path / "echo"
    listening(f"{owner}://{path}")
    with pytest.raises(CannotListen, match=str(path)):
        listening(f"{transport}://{path}")
    assert is_answering(path, kind_of(owner))


@pytest.mark.parametrize("transport", UNIX_KINDS)
def test_a_socket_file_under_two_names_is_in_use(
    listening: Listen, tmp_path: Path, transport: str
) -> None:
    with pytest.raises(CannotListen, match=r"/\./echo"):
        listening(f"{transport}://{tmp_path}/echo", f"{transport}://{tmp_path}/./echo")
    assert not (tmp_path / "echo").exists()


def test_a_socket_in_use_with_a_full_queue_is_left_alone(listening: Listen, tmp_path: Path) -> None:
    path = tmp_path / "busy"
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as clients:
        busy.bind(str(path))
        busy.listen(0)
        for _ in range(2):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(str(path))
        with pytest.raises(CannotListen):
            listening(f"unix://{path}")


@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_a_file_that_is_not_a_socket_is_not_removed(
    listening: Listen, tmp_path: Path, what: str
) -> None:
    path, target = tmp_path / "echo", tmp_path / "target"
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    else:
        leave_socket_file(target, socket.SOCK_STREAM)
        path.symlink_to(target)
    with pytest.raises(SuperdError, match=r"is not a socket; remove it or name another path"):
        listening(f"unix://{path}")
    assert path.is_symlink() if what == "link" else path.exists()


@pytest.mark.parametrize("transport", UNIX_KINDS)
def test_a_socket_file_is_removed_with_its_listener(
    listening: Listen, tmp_path: Path, transport: str
) -> None:
    (listener,) = listening(f"{transport}://{tmp_path}/echo")
    listener.close()
    assert not (tmp_path / "echo").exists()


@pytest.mark.parametrize("transport", UNIX_KINDS)
def test_a_replaced_socket_file_is_not_removed(
    listening: Listen, tmp_path: Path, transport: str
) -> None:
    path = tmp_path / "echo"
    (listener,) = listening(f"{transport}://{path}")
    path.unlink()
    leave_socket_file(path, kind_of(transport))
    listener.close()
    assert path.is_socket()


@pytest.mark.parametrize("transport", UNIX_KINDS)
def test_an_abstract_name_has_no_file_and_cannot_be_bound_twice(
    listening: Listen, tmp_path: Path, transport: str
) -> None:
    name = f"@superd-test-{os.getpid()}"
    (listener,) = listening(f"{transport}://{name}")
    with socket.socket(socket.AF_UNIX, kind_of(transport)) as client:
        client.connect("\0" + name[1:])
    with pytest.raises(CannotListen, match=name):
        listening(f"{transport}://{name}")
    listener.close()
    listening(f"{transport}://{name}")


# Damage that a worker may have done


def address_of(transport: str, directory: Path) -> str:
    if transport in ("tcp", "udp"):
        return f"{transport}://127.0.0.1:0"
    if transport.endswith("@"):
        return f"{transport[:-1]}://@superd-test-{os.getpid()}"
    return f"{transport}://{directory}/echo"


ALL_KINDS = ("tcp", "udp", *UNIX_KINDS, "unix@", "unixgram@", "unixpacket@")


@pytest.mark.parametrize("transport", ALL_KINDS)
def test_an_undamaged_listener_is_not_repaired(
    listening: Listen, tmp_path: Path, transport: str
) -> None:
    (listener,) = listening(address_of(transport, tmp_path))
    assert listener.repair() is None
    with socket.socket(listener.address.family, listener.address.transport.socket_type) as client:
        client.connect(listener.address.sockaddr)
        if listener.address.transport.is_datagram:
            client.send(b"waiting")
        assert listener.repair() is None


@pytest.mark.parametrize("transport", ALL_KINDS)
def test_a_blocking_listener_is_repaired_unless_it_is_for_datagrams(
    listening: Listen, tmp_path: Path, transport: str
) -> None:
    (listener,) = listening(address_of(transport, tmp_path))
    is_datagram = listener.address.transport.is_datagram  # a program may share its socket
    with listener.socket.dup() as theirs:
        theirs.setblocking(True)
        assert listener.repair() == (None if is_datagram else "was made blocking")
        assert os.get_blocking(theirs.fileno()) == is_datagram


@pytest.mark.parametrize("transport", ["tcp", "unix", "unixpacket"])
def test_only_a_program_may_block_in_accept(
    listening: Listen, tmp_path: Path, transport: str
) -> None:
    def limit(listener: Listener) -> float:
        size = struct.calcsize("@ll")
        value = listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, size)
        seconds, microseconds = struct.unpack("@ll", value)
        return float(seconds + microseconds / 1e6)

    address = address_of(transport, tmp_path)
    listeners = listening(address)
    assert 0 < limit(listeners[0]) < 0.1
    for wait in (True, False):  # as a reload does, which keeps the socket
        successors = listen({"echo": service(address, wait=wait)}, listeners)
        assert adopt(successors, listeners) == []
        assert (limit(successors[0]) == 0) == wait
        listeners = successors
    fresh_directory = tmp_path / "fresh"
    fresh_directory.mkdir()
    (fresh,) = listening(address_of(transport, fresh_directory), wait=True)
    assert limit(fresh) == 0


def test_a_reduced_backlog_is_restored(listening: Listen) -> None:
    (listener,) = listening("tcp://127.0.0.1:0", backlog=50)
    for less in (0, 1, 49):
        listener.socket.listen(less)
        assert listener.repair() == "had its backlog reduced"
        assert listener.repair() is None


def test_the_backlog_of_a_unix_socket_is_restored_without_a_report(
    listening: Listen, tmp_path: Path
) -> None:
    (listener,) = listening(f"unix://{tmp_path}/echo", backlog=50)
    listener.socket.listen(0)
    listener.repair()
    with contextlib.ExitStack() as clients:
        for _ in range(50):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect(str(tmp_path / "echo"))


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
def test_a_tcp_listener_that_was_shut_down_listens_again(listening: Listen, how: int) -> None:
    (listener,) = listening(f"tcp://127.0.0.1:{free_port()}")
    listener.socket.shutdown(how)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.address.sockaddr)
    assert listener.repair() == "was shut down"
    socket.create_connection(listener.address.sockaddr).close()


def test_a_tcp_listener_that_shares_its_port_listens_again(listening: Listen) -> None:
    port = free_port()
    for listener in listening(f"tcp://127.0.0.2:{port}", f"tcp://0.0.0.0:{port}"):
        listener.socket.shutdown(socket.SHUT_RDWR)
        assert listener.repair() == "was shut down"
        assert listener.repair() is None
        with socket.create_connection(("127.0.0.2", port)):
            pass


def test_a_listener_on_a_port_that_the_kernel_chose_is_reopened(
    listening: Listen,
) -> None:
    (listener,) = listening("tcp://127.0.0.1:0")
    listener.socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(OSError, match="assign"):
        listener.repair()
    listener.close()
    reopened = reopen(listener)
    with socket.create_connection(listener.address.sockaddr):
        reopened.close()


def shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # udp shuts down in spite of ENOTCONN
        sock.shutdown(socket.SHUT_RD)


def connect_to_itself(sock: socket.socket) -> None:
    sock.connect(sock.getsockname())


@pytest.mark.parametrize(
    ("transport", "sabotage"),
    [
        *((transport, shut_down) for transport in ALL_KINDS if transport != "tcp"),
        *((transport, connect_to_itself) for transport in ("udp", "unixgram", "unixgram@")),
    ],
)
def test_a_listener_beyond_repair_is_reopened(
    listening: Listen,
    tmp_path: Path,
    transport: str,
    sabotage: Callable[[socket.socket], None],
) -> None:
    (listener,) = listening(address_of(transport, tmp_path))
    sabotage(listener.socket)
    with pytest.raises(OSError, match="shutdown"):
        listener.repair()
    listener.close()
    reopened = reopen(listener)
    try:
        assert reopened.address == listener.address
        assert reopened.repair() is None
        kind = listener.address.transport.socket_type
        with socket.socket(listener.address.family, kind) as client:
            client.connect(listener.address.sockaddr)
    finally:
        reopened.close()


def test_a_datagram_listener_that_shares_its_port_is_reopened(
    listening: Listen,
) -> None:
    port = free_port()
    specific, _ = listening(f"udp://127.0.0.2:{port}", f"udp://0.0.0.0:{port}")
    specific.close()
    reopened = reopen(specific)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"hello", ("127.0.0.2", port))
    assert reopened.socket.recv(9) == b"hello"
    reopened.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::]"])
def test_a_closed_listener_stays_closed_and_others_keep_their_sockets(host: str) -> None:
    port = free_port()
    wanted = {
        "echo": service(f"udp://{host}:{port}", "tcp://127.0.0.1:0"),
        "other": service(f"udp://127.0.0.2:{port}", f"udp://0.0.0.0:{port}"),
    }
    before = listen(wanted)
    try:
        before[0].close()
        changed = {**wanted, "echo": wanted["echo"].model_copy(update={"backlog": 1})}
        after = listen(changed, before)
        assert [one.is_closed for one in after] == [True, False, False, False]
        assert adopt(after, before) == []
    finally:
        for listener in before:
            listener.close()


def test_a_copy_of_a_listener_that_was_closed_removes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    entry = service(f"unix://{path}")
    (listener,) = listen({"echo": entry})
    (copy,) = listen({"echo": entry}, [listener])
    os.link(path, tmp_path / "same-inode")  # a new file may get the inode of a removed one
    listener.close()
    assert not path.exists()
    os.rename(tmp_path / "same-inode", path)
    copy.close()
    assert path.exists()


@pytest.fixture
def replace_entry() -> Iterator[Callable[[Service], list[Listener]]]:
    """Return a function that replaces the entry, as a reload does."""
    listeners: list[Listener] = []

    def replace(entry: Service) -> list[Listener]:
        nonlocal listeners
        before, listeners = listeners, listen({"echo": entry}, listeners)
        try:
            left = adopt(listeners, before)
        except SuperdError:
            listeners = before
            raise
        for listener in left:
            listener.close()
        return listeners

    yield replace
    for listener in listeners:
        listener.close()


ReplaceEntry = Callable[[Service], list[Listener]]


def device_of(listener: Listener) -> str:
    raw = listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
    return raw.rstrip(b"\0").decode()


@pytest.mark.root
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_kept_socket_gets_another_device(replace_entry: ReplaceEntry, transport: str) -> None:
    address = f"{transport}://127.0.0.1:{free_port()}"
    inodes = set()
    for device in ("", "lo", ""):
        (listener,) = replace_entry(service(address, device=device))
        inodes.add(os.fstat(listener.socket.fileno()).st_ino)
        assert device_of(listener) == device
    assert len(inodes) == 1
    replace_entry(service(address, **{"free-bind": True}))


@pytest.mark.root
def test_a_change_that_fails_leaves_every_socket_as_it_was(
    replace_entry: ReplaceEntry, tmp_path: Path
) -> None:
    file, port = f"unix://{tmp_path}/echo", free_port()
    (first, second) = replace_entry(service(f"{file}?mode=0600", f"tcp://127.0.0.1:{port}"))
    with pytest.raises(SuperdError, match='no network interface "nowhere0"'):
        replace_entry(service(f"{file}?user=1", f"tcp://127.0.0.1:{port}", device="nowhere0"))
    status = (tmp_path / "echo").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid())
    assert not first.is_closed
    assert device_of(second) == ""


@pytest.mark.root
def test_a_changed_file_has_the_owner_of_a_new_one(
    replace_entry: ReplaceEntry, tmp_path: Path
) -> None:
    os.chown(tmp_path, 0, 7)
    tmp_path.chmod(0o2755)
    for query, expected in (
        ("?user=1&group=2", (1, 2, 0o666)),
        ("?group=3&mode=0640", (0, 3, 0o640)),
        ("", (0, 7, 0o666)),
    ):
        replace_entry(service(f"unix://{tmp_path}/echo{query}"))
        status = (tmp_path / "echo").stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == expected


def test_a_replaced_file_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "echo"
    before = listen({"echo": service(f"unix://{path}?mode=0600")})
    after = listen({"echo": service(f"unix://{path}?mode=0666")}, before)
    path.rename(tmp_path / "ours")
    path.touch(0o600)
    with pytest.raises(SuperdError, match="was replaced by another process"):
        adopt(after, before)
    assert [stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()] == [0o600, 0o600]
    before[0].close()


@pytest.mark.root
def test_a_port_below_1024_is_not_permitted_to_another_user() -> None:
    start = int(UNPRIVILEGED.read_text())
    if start <= 1:
        pytest.skip("any user may bind any port here")
    text = refusal_to_nobody("tcp://127.0.0.1:1")
    where = "service.echo: cannot listen on tcp://127.0.0.1:1"
    assert text == (
        f"{where}: not permitted: port 1 is below {start}; use a higher port, or run superd as"
        " root or with CAP_NET_BIND_SERVICE (AmbientCapabilities= in a unit of systemd)"
    )


@pytest.mark.root
def test_an_owner_that_cannot_be_set_leaves_no_file_behind(open_directory: Path) -> None:
    open_directory.chmod(0o777)
    text = refusal_to_nobody(f"unix://{open_directory}/echo?user=0")
    assert text == f"service.echo: cannot listen on unix://{open_directory}/echo: not permitted"
    assert not (open_directory / "echo").exists()


def refusal_to_nobody(address: str) -> str:
    """Return the error of listening as another user than root."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            listen({"echo": service(address)})
        except CannotListen as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


# Names and pending addresses


HOST = {"both.example": Answer(("127.0.0.1", "127.0.0.2"))}


def test_an_address_that_a_name_repeats_is_bound_once() -> None:
    port = free_port()
    entry = service(f"tcp://both.example:{port}", f"tcp://127.0.0.1:{port}")
    listeners = listen({"echo": entry}, answers=HOST)
    with contextlib.ExitStack() as stack:
        for listener in listeners:
            stack.callback(listener.close)
        found = {str(listener.address) for listener in listeners}
        assert found == {f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.2:{port}"}
        again = listen({"echo": entry}, listeners)  # no name server answers now
        assert [one.socket for one in again] == [one.socket for one in listeners]


def test_an_address_that_a_name_stands_for_does_not_go_to_a_range() -> None:
    low = free_range(3)
    services = {
        "range": service(f"tcp://127.0.0.1:{low}-{low + 2}"),
        "named": service(f"tcp://both.example:{low + 1}"),
    }
    notices: list[str] = []
    with contextlib.ExitStack() as stack:
        for listener in listen(services, (), notices, HOST):
            stack.callback(listener.close)
            if listener.address.port == low + 1:
                assert listener.service == "named"
    assert notices == [
        f"service.range: left out, as other processes listen there: tcp://127.0.0.1:{low + 1}"
    ]


def test_a_pending_name_is_bound_at_the_hosts_that_it_has_later() -> None:
    port = free_port()
    entry = service(f"tcp://both.example:{port}", "tcp://127.0.0.1:0")
    listeners = listen({"echo": entry}, serves_others=True)
    with contextlib.ExitStack() as stack:
        (pending, other) = listeners
        stack.callback(other.close)
        assert (pending.is_closed, str(pending.address)) == (True, f"tcp://both.example:{port}")
        with socket.create_server(("127.0.0.1", port)):
            first = listen_again([pending], [other], [], HOST)
        taken = [one for one in first if one.failure is not None]
        for one in first:
            stack.callback(one.close)
        assert [str(one.address) for one in taken] == [f"tcp://127.0.0.1:{port}"]
        moved = {"both.example": Answer(("127.0.0.2", "127.0.0.3"))}
        second = listen_again(taken, [one for one in [*first, other] if not one.failure], [], moved)
        for one in second:
            stack.callback(one.close)
        assert [str(one.address) for one in second] == [f"tcp://127.0.0.3:{port}"]
        assert second[0].failure is None


def test_one_family_of_the_wildcard_is_tried_again_alone() -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        with socket.create_server(("0.0.0.0", port)):
            (pending, bound) = listen({"echo": service(f"tcp://*:{port}")}, serves_others=True)
        stack.callback(bound.close)
        (again,) = listen_again([pending], [bound], [])
        stack.callback(again.close)
        assert (str(again.address), again.failure) == (f"tcp://0.0.0.0:{port}", None)


def test_a_stored_socket_serves_its_name_without_a_name_server() -> None:
    with socket.create_server(("127.0.0.2", 0)) as kept:
        port = kept.getsockname()[1]
        (address,) = parse_addresses(f"tcp://127.0.0.2:{port}")
        stored = Inherited(0, 0, "superd/echo", kept, address, is_own=True, service="echo")
        services = {"echo": service(f"tcp://both.example:{port}")}
        existing = match(services, Inheritance([stored]), [])
        (listener,) = listen(services, existing)
        assert (listener.socket, listener.failure) == (kept, None)
        (same,) = listen(services, [listener], answers={"both.example": Answer(("127.0.0.2",))})
        assert same.socket is kept
