"""Access rules with real clients from many addresses, over every transport."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import connect_and_receive
from tests.support.harness import EVENT_TIMEOUT, Superd, exchange, until
from tests.support.namespaces import network_namespace

TOML = """
[defaults]
plugin = "echo"
listen = "tcp://127.0.0.1:0"

[service.friends]
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0", "tcp://[::1]:0"]
allow = ["127.0.0.0/24", "127.0.9.9", "::1"]
deny = ["127.0.0.66", "127.0.9.0/24"]

[service.closed]
allow = []

[service.open]
deny = "192.0.2.0/24"

[service.private]
listen = "unix://{directory}/private?mode=0666"
allow = ["user:root", "group:1"]

[service.never]
access-times = []

[service.always]
access-times = "00:00-24:00"

[service.banner]
allow = "127.0.0.2"
banner-refused = "not for you\\r\\n"
"""


def is_admitted(served: Superd, service: str, source: str | None = None) -> bool:
    with served.connect(service, source) as client:
        try:
            client.sendall(b"x")
            return client.recv(1) == b"x"
        except ConnectionError:
            return False


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("127.0.0.1", True),
        ("127.0.0.255", True),
        ("127.0.0.66", False),
        ("127.0.1.1", False),
        ("127.0.9.9", True),
        ("127.0.9.8", False),
    ],
)
def test_the_most_specific_rule_decides_on_a_client(
    served: Superd, source: str, expected: bool
) -> None:
    refused = served.counts("friends")["refused-access"]
    assert is_admitted(served, "friends", source) is expected
    assert served.counts("friends")["refused-access"] - refused == (not expected)


@pytest.mark.parametrize(("source", "expected"), [("127.0.0.7", True), ("127.0.0.66", False)])
def test_the_same_rules_apply_to_datagrams(served: Superd, source: str, expected: bool) -> None:
    refused = served.counts("friends")["refused-access"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((source, 0))
        client.connect(served.address("friends", "udp"))
        client.settimeout(EVENT_TIMEOUT)
        client.send(b"hello")
        if expected:
            assert client.recv(100) == b"hello"
        else:
            until(
                lambda: served.counts("friends")["refused-access"] == refused + 1,
                "the refusal of the datagram",
            )


def test_an_ipv6_client_is_admitted_by_an_ipv6_rule(served: Superd) -> None:
    host, port = served.addresses("friends")[1]
    assert host == "::1"
    with socket.create_connection((host, port), timeout=EVENT_TIMEOUT) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"


@pytest.mark.parametrize(
    ("service", "expected"),
    [("closed", False), ("open", True), ("never", False), ("always", True)],
)
def test_empty_lists_and_access_times_refuse_every_client(
    served: Superd, service: str, expected: bool
) -> None:
    assert is_admitted(served, service) is expected


def test_a_client_refused_by_a_rule_gets_the_banner(served: Superd) -> None:
    assert connect_and_receive(served.address("banner"), b"unread") == (b"not for you\r\n", "fin")


AS_ANOTHER = """
import os, socket, sys
os.setgroups([int(n) for n in sys.argv[2].split(",") if n])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
client = socket.socket(socket.AF_UNIX)
client.settimeout(15)
client.connect(sys.argv[1])
try:
    client.send(b"x")
    print(client.recv(1).decode())
except OSError:
    print()
"""


@pytest.mark.root
@pytest.mark.parametrize(("groups", "expected"), [("", ""), ("1", "x"), ("4,1,27", "x")])
def test_rules_for_users_and_groups_use_the_kernels_credentials_of_a_unix_peer(
    served: Superd, groups: str, expected: str
) -> None:
    directory: Path | None = served.directory
    while directory is not None and directory != Path("/tmp"):
        directory.chmod(0o711)
        directory = directory.parent if directory.parent != directory else None
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER, str(served.directory / "private"), groups],
        capture_output=True, text=True, timeout=EVENT_TIMEOUT, check=True, cwd="/",
    )  # fmt: skip
    assert done.stdout.strip() == expected


@pytest.mark.root
def test_a_rule_for_the_user_root_admits_root_on_a_unix_socket(served: Superd) -> None:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(EVENT_TIMEOUT)
    client.connect(str(served.directory / "private"))
    assert os.geteuid() == 0
    assert exchange(client, b"root") == b"root"


def test_allow_file_admits_the_listed_networks(start_superd: Start, tmp_path: Path) -> None:
    (tmp_path / "friends").write_text("# friends\n127.0.0.2\n127.0.1.0/24\n")
    served = start_superd(
        f"""
        [service.listed]
        plugin = "echo"
        listen = "tcp://127.0.0.1:0"
        allow-file = "{tmp_path}/friends"
        deny = "127.0.1.7"
        """
    )
    assert [
        is_admitted(served, "listed", source)
        for source in ("127.0.0.1", "127.0.0.2", "127.0.1.1", "127.0.1.7")
    ] == [False, True, True, False]


def test_ipv4_rules_apply_to_an_ipv4_mapped_client(start_superd: Start) -> None:
    served = start_superd(
        """
        [service.mapped]
        plugin = "echo"
        listen = "tcp://*:0"
        deny = "127.0.0.0/8"
        """
    )
    port = served.address("mapped")[1]
    with socket.socket(socket.AF_INET6) as client:
        client.settimeout(EVENT_TIMEOUT)
        try:
            client.connect(("::ffff:127.0.0.1", port))
            client.sendall(b"x")
            assert client.recv(1) == b""
        except ConnectionError:
            pass
    until(lambda: served.counts("mapped")["refused-access"] == 1, "the refusal of the client")


@pytest.mark.root
@pytest.mark.tool("ip")
def test_max_per_source_counts_an_ipv6_64_network_as_one_source(start_superd: Start) -> None:
    with network_namespace() as space:
        for number in range(1, 4):
            space.add_address(f"2001:db8::{number}/128")
        space.add_address("2001:db8:0:1::1/128")
        served = start_superd(
            """
            [service.echo]
            plugin = "echo"
            listen = "tcp://[2001:db8::1]:7007"
            max-per-source = 2
            """,
            *space.wrapper,
        )

        def connect(source: str) -> tuple[socket.socket, bytes]:
            with space.inside():
                client = socket.socket(socket.AF_INET6)
            client.settimeout(EVENT_TIMEOUT)
            client.bind((source, 0))
            client.connect(("2001:db8::1", 7007))
            client.sendall(b"x")
            try:
                return client, client.recv(1)
            except ConnectionError:
                return client, b""

        sources = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1"]
        found = [connect(source) for source in sources]
        assert [answer for _, answer in found] == [b"x", b"x", b"", b"x"]
        for client, _ in found:
            client.close()
        assert served.counts("echo")["refused-max-per-source"] == 1
