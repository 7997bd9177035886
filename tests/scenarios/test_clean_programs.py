"""The environment, descriptors and signals of a program, over every transport: as documented."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from tests.support.clients import connect_tcp, connect_unix
from tests.support.harness import EVENT_TIMEOUT, Address, Superd, receive_all

pytestmark = pytest.mark.tool("perl")

# A subshell inspects its parent shell, which has not opened anything yet. It must not be the last
# command: dash would not fork for it, and dash itself blocks signals around its vfork(2).
INSPECT = r"""(
for fd in /proc/$$/fd/*; do
    [ -e "$fd" ] && sed -n "s/^flags:/flags ${fd##*/}/p" /proc/$$/fdinfo/${fd##*/}
done
grep -E "^(Sig(Ign|Blk)|Umask):" /proc/$$/status
echo "stat $(cat /proc/$$/stat)"
echo "cwd $(readlink /proc/$$/cwd)"
echo "environ"
cat /proc/$$/environ
)"""
STREAM = f"{INSPECT}; exit"
FILED = f"file=$(mktemp); {INSPECT} > $file; exec perl -e"
READ = r'open F, "<", $ARGV[0]; local $/; $found = <F>; unlink $ARGV[0];'
LISTENER = f"""{FILED} 'use Socket; {READ} accept C, STDIN; syswrite C, $found' $file"""
DATAGRAM = f"""{FILED} '{READ} $p = recv STDIN, $d, 65536, 0; send STDOUT, $found, 0, $p' $file"""

BASE = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "WANTED": "yes",
    "ONE": "1",
    "EMPTY": "",
    "ODD": "a=b\n c",
}
NOT_PASSED = {
    "LEAKENV": "secret",
    "LD_LIBRARY_PATH": "/nowhere",
    "PYTHONWARNINGS": "error",
    "BASH_ENV": "/nowhere",
    "ENV": "/nowhere",
    "IFS": "/",
    "TZ": "UTC",
    "LANG": "C",
    "LISTEN_FDS": "1",
}
LIBC_SIGNALS = 0x1_8000_0000  # two internal signals, which posix_spawn(3) leaves ignored
NONBLOCK = 0o4000

SERVICES = {
    "tcp": ("tcp://127.0.0.1:0", STREAM),
    "tcp6": ("tcp://[::1]:0", STREAM),
    "tcp-any": ("tcp://*:0", STREAM),
    "unix": ("unix://{directory}/unix", STREAM),
    "unixpacket": ("unixpacket://{directory}/unixpacket", STREAM),
    "listen-fds": ("tcp://127.0.0.1:0", STREAM),
    "tcp-wait": ("tcp://127.0.0.1:0", LISTENER),
    "unix-wait": ("unix://{directory}/unix-wait", LISTENER),
    "udp-wait": ("udp://127.0.0.1:0", DATAGRAM),
    "udp6-wait": ("udp://[::1]:0", DATAGRAM),
    "unixgram-wait": ("unixgram://{directory}/unixgram-wait", DATAGRAM),
    "udp": ("udp://127.0.0.1:0", DATAGRAM),
}
ENTRY = """
[service.{name}]
plugin = "exec"
listen = "{listen}"
wait = {wait}
umask = "027"
[service.{name}.options]
command = ["sh", "-c", '''{script}''']
env = {{ ONE = "1", EMPTY = "", ODD = "a=b\\n c" }}
pass-env = ["WANTED", "NOT_THERE"]
listen-fds = {listen_fds}
"""
TOML = "".join(
    ENTRY.format(
        name=name,
        listen=listen,
        script=script,
        wait=str(name.endswith("-wait")).lower(),
        listen_fds=str(name == "listen-fds").lower(),
    )
    for name, (listen, script) in SERVICES.items()
)


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    for name, value in {**NOT_PASSED, "WANTED": "yes"}.items():
        patch.setenv(name, value)
    yield
    patch.undo()


@dataclass(frozen=True)
class Found:
    """The report of a program, and the addresses of its client's connection."""

    environment: dict[str, str]
    flags: dict[int, int]
    status: dict[str, int]
    stat: list[str]
    cwd: str
    own: str
    other: str


def inspect(served: Superd, service: str, transport: str, host: str = "") -> Found:
    """Connect to a service and return the report of its program."""
    kind = {"unixpacket": socket.SOCK_SEQPACKET, "unixgram": socket.SOCK_DGRAM}
    if transport.startswith("unix"):
        path = served.directory / service
        client = connect_unix(path, kind.get(transport, socket.SOCK_STREAM))
    else:
        addresses = served.addresses(service, transport)
        address = next(one for one in addresses if host in ("", one[0]))
        client = connect_inet(address, transport)
    with client:
        own, other = client.getsockname(), client.getpeername()
        if transport in ("udp", "unixgram"):
            client.send(b"x")
            data = client.recv(65536)
        else:
            data = receive_all(client)
    return parsed(data, text_of(own), text_of(other))


def connect_inet(address: Address, transport: str) -> socket.socket:
    """Connect to an address, or to the loopback address if it is a wildcard."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])
    if transport == "tcp":
        return connect_tcp((host, address[1]))
    client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(EVENT_TIMEOUT)
    client.connect((host, address[1]))
    return client


def text_of(sockaddr: Any) -> str:
    """Return an address as in the environment of a program: `host port`, or a path."""
    if isinstance(sockaddr, tuple):
        return f"{sockaddr[0]} {sockaddr[1]}"
    return sockaddr if isinstance(sockaddr, str) else "@" + sockaddr[1:].decode()


def parsed(data: bytes, own: str, other: str) -> Found:
    head, _, environ = data.partition(b"environ\n")
    text = head.decode()
    entries = [entry.partition("=") for entry in environ.decode().removesuffix("\0").split("\0")]
    assert len(entries) == len({name for name, _, _ in entries})
    status = re.findall(r"^(\w+):\s+(\w+)$", text, re.MULTILINE)
    number, rest = re.findall(r"^stat (\d+) \(.*\) (.*)$", text, re.MULTILINE)[0]
    return Found(
        {name: value for name, _, value in entries},
        {int(n): int(f, 8) for n, f in re.findall(r"^flags (\d+)\s+(\d+)$", text, re.MULTILINE)},
        {key: int(value, 8 if key == "Umask" else 16) for key, value in status},
        [number, *rest.split()],
        re.findall(r"^cwd (.*)$", text, re.MULTILINE)[0],
        own,
        other,
    )


def inet(proto: str, found: Found, *, peer: bool = True) -> dict[str, str]:
    """Return the variables for both addresses of a client's connection."""
    host, port = found.other.split()
    variables = {"PROTO": proto, f"{proto}LOCALIP": host, f"{proto}LOCALPORT": port}
    if peer:
        host, port = found.own.split()
        variables |= {f"{proto}REMOTEIP": host, f"{proto}REMOTEPORT": port}
        variables |= {"REMOTE_HOST": host, "REMOTE_ADDR": host, "REMOTE_PORT": port}
    return variables


def unix(found: Found) -> dict[str, str]:
    peer = {"IPCREMOTEPATH": found.own} if found.own else {}
    return {"PROTO": "IPC", "IPCLOCALPATH": found.other, **peer}


@pytest.mark.parametrize(
    ("service", "transport", "host", "variables"),
    [
        ("tcp", "tcp", "", partial(inet, "TCP")),
        ("tcp6", "tcp", "", partial(inet, "TCP")),
        ("tcp-any", "tcp", "0.0.0.0", partial(inet, "TCP")),
        ("tcp-any", "tcp", "::", partial(inet, "TCP")),
        ("unix", "unix", "", unix),
        ("unixpacket", "unixpacket", "", unix),
        ("tcp-wait", "tcp", "", partial(inet, "TCP", peer=False)),
        ("unix-wait", "unix", "", unix),
        ("udp-wait", "udp", "", partial(inet, "UDP")),
        ("udp6-wait", "udp", "", partial(inet, "UDP")),
        ("unixgram-wait", "unixgram", "", unix),
        ("udp", "udp", "", partial(inet, "UDP")),
    ],
)
def test_a_program_finds_exactly_what_is_documented(
    served: Superd,
    service: str,
    transport: str,
    host: str,
    variables: Callable[[Found], dict[str, str]],
) -> None:
    found = inspect(served, service, transport, host)
    has_socket = service.endswith("-wait") or service == "udp"
    handed = {"SUPERD_HANDED_BY": str(served.file)} if has_socket else {}
    assert found.environment == {**BASE, **handed, **variables(found)}
    assert set(found.flags) == {0, 1, 2}
    assert not any(flags & NONBLOCK for flags in found.flags.values())
    assert found.status["SigBlk"] == found.status["SigIgn"] & ~LIBC_SIGNALS == 0
    assert found.status["Umask"] == 0o027
    number, _, _, group, session, terminal, *_ = found.stat
    assert (group, session, terminal) == (number, number, "0")
    assert found.cwd == "/"


def test_listen_fds_adds_one_descriptor_and_its_variables(served: Superd) -> None:
    found = inspect(served, "listen-fds", "tcp")
    listening = {
        "LISTEN_FDS": "1",
        "LISTEN_FDNAMES": "connection",
        "LISTEN_PID": found.stat[0],
    }
    assert found.environment == {**BASE, **inet("TCP", found), **listening}
    assert set(found.flags) == {0, 1, 2, 3}
    assert not any(flags & NONBLOCK for flags in found.flags.values())
