"""Forwarding loops: no connection goes around more than once."""

from __future__ import annotations

import contextlib
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import connect_tcp, connect_unix
from tests.support.harness import Superd, superd, until
from tests.support.namespaces import network_namespace
from tests.support.ports import free_ports
from tests.support.usage import open_descriptors

PORT, OTHER = free_ports(2)
# addresses of the first and the second service, and another name of the first, for the target of
# the second: `check` reports a loop by the same name
LOOPS = {
    "tcp": (f"tcp://127.0.0.1:{PORT}", f"tcp://127.0.0.1:{OTHER}", f"tcp://localhost:{PORT}"),
    "unix": (
        "unix://{directory}/first",
        "unix://{directory}/second",
        "unix://{directory}/link/first",
    ),
    "mixed": (f"tcp://127.0.0.1:{PORT}", "unix://{directory}/second", f"tcp://localhost:{PORT}"),
    "unixgram": (
        "unixgram://{directory}/first",
        "unixgram://{directory}/b",
        "unixgram://{directory}/link/first",
    ),
}
TWO = """
[daemon]
record-log = "stderr"

[service.first]
plugin = "forward"
listen = "{first}"
options = {{ to = "{second}" }}

[service.second]
plugin = "forward"
listen = "{second}"
options = {{ to = "{back}" }}
"""


def accepted_counts(served: Superd) -> list[int]:
    return [int(served.counts(name)["accepted"]) for name in ("first", "second")]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that workers of any user can reach, with a link to itself."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "link").symlink_to(directory)
        yield directory


@pytest.mark.root  # counts descriptors of workers
@pytest.mark.parametrize("kind", LOOPS)
def test_a_connection_of_a_loop_is_refused_the_second_time(
    start_superd: Start, directory: Path, kind: str
) -> None:
    first, second, back = (
        address.replace("{directory}", str(directory)) for address in LOOPS[kind]
    )
    text = TWO.format(first=first, second=second, back=back)
    text = re.sub(r'(listen = "unix[^"]*)"', r'\1?mode=0666"', text)
    served = start_superd(text)
    before = open_descriptors(served.workers())
    with contextlib.ExitStack() as stack:
        if kind == "unixgram":
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            client.sendto(b"hello", str(directory / "first"))
        elif kind == "unix":
            client = stack.enter_context(connect_unix(directory / "first"))
        else:
            with contextlib.suppress(ConnectionResetError):  # connect(2) may report it already
                stack.enter_context(connect_tcp(("127.0.0.1", PORT)))
        served.wait_for_log("forwarding loop: the target leads back")
        until(lambda: accepted_counts(served) == [2, 1], "the connection to go around once")
        assert open_descriptors(served.workers())[0] - before[0] < 9
    assert accepted_counts(served) == [2, 1]


def test_a_loop_within_the_configuration_is_a_mistake(tmp_path: Path) -> None:
    """Also if each service has a pool of its own."""
    one, two, three = (f"tcp://127.0.0.1:{port}" for port in free_ports(3))
    file = tmp_path / "superd.toml"
    entries = {"a": (one, two), "b": (two, three), "c": (three, one), "d": ("unix://@d", one)}
    file.write_text(
        "".join(
            f'[service.{name}]\nplugin = "forward"\npool = "{name}"\nlisten = "{listen}"\n'
            f'options = {{ to = "{to}" }}\n'
            for name, (listen, to) in entries.items()
        )
    )
    file.chmod(0o600)
    done = superd("check", str(file))
    assert done.returncode == 78
    errors = done.stderr.splitlines()
    assert len(errors) == 3
    assert errors[0].endswith(
        "service.a.options.to: forwarding loop: "
        "connections come back here by way of service.b, service.c"
    )


def test_a_client_is_reset_however_many_targets_refuse(start_superd: Start) -> None:
    targets = ", ".join(f'"unix://@superd-test-absent-{number}"' for number in range(400))
    served = start_superd(
        f"""
        [service.web]
        plugin = "forward"
        listen = "tcp://127.0.0.1:0"
        options = {{ to = [{targets}] }}
        """
    )
    with pytest.raises(ConnectionResetError), served.connect("web") as client:
        client.recv(1)
    assert "Traceback" not in served.log()
    assert served.counts("web")["errors"] == 0


CHAIN = """
[service.front]
plugin = "forward"
listen = "tcp://127.0.0.1:7001"
options = { to = "tcp://127.0.0.1:7002" }

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:7002"
"""


@pytest.mark.root
@pytest.mark.tool("ip")
def test_a_client_with_the_port_of_another_connection_is_served(
    start_superd: Start,
) -> None:
    """The kernel assigns one port to connections with different destinations."""
    with network_namespace() as space, contextlib.ExitStack() as stack:
        space.sysctl("net.ipv4.ip_local_port_range=40000 40003")
        served = start_superd(CHAIN, *space.wrapper)
        stack.callback(served.stop)
        for _ in range(4):
            with space.inside():
                client = stack.enter_context(connect_tcp(("127.0.0.1", 7001)))
            client.sendall(b"x")
            assert client.recv(1) == b"x"
