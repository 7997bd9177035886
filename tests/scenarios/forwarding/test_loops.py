"""Services that lead to each other: nobody goes round more than once."""

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
# where the first listens, and the second, and by what other name the second finds the first: the
# same one would be a mistake that `check` tells
LOOPS = {
    "tcp": (f"tcp://127.0.0.1:{PORT}", f"tcp://127.0.0.1:{OTHER}", f"tcp://localhost:{PORT}"),
    "unix": ("unix://{here}/first", "unix://{here}/second", "unix://{here}/link/first"),
    "mixed": (f"tcp://127.0.0.1:{PORT}", "unix://{here}/second", f"tcp://localhost:{PORT}"),
    "unixgram": ("unixgram://{here}/first", "unixgram://{here}/b", "unixgram://{here}/link/first"),
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


def entered(served: Superd) -> list[int]:
    return [int(served.counts(name)["accepted"]) for name in ("first", "second")]


@pytest.fixture
def here() -> Iterator[Path]:
    """A directory that workers can reach, whoever they are, with a second name inside."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "link").symlink_to(directory)
        yield directory


@pytest.mark.parametrize("kind", LOOPS)
def test_who_comes_round_again_is_turned_away(start_superd: Start, here: Path, kind: str) -> None:
    first, second, back = (address.replace("{here}", str(here)) for address in LOOPS[kind])
    text = TWO.format(first=first, second=second, back=back)
    text = re.sub(r'(listen = "unix[^"]*)"', r'\1?mode=0666"', text)
    served = start_superd(text)
    before = open_descriptors(served.workers())
    with contextlib.ExitStack() as stack:
        if kind == "unixgram":
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            client.sendto(b"hello", str(here / "first"))
        elif kind == "unix":
            client = stack.enter_context(connect_unix(here / "first"))
        else:
            with contextlib.suppress(ConnectionResetError):  # connect(2) may see it already
                stack.enter_context(connect_tcp(("127.0.0.1", PORT)))
        served.wait_for_log("forwarding loop: the target leads back")
        until(lambda: entered(served) == [2, 1], "it to have come round once")
        assert open_descriptors(served.workers())[0] - before[0] < 9
    assert entered(served) == [2, 1]


def test_a_circle_that_the_configuration_shows_is_a_mistake(tmp_path: Path) -> None:
    """Also where each service has workers of its own, which know nothing of each other."""
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
    told = done.stderr.splitlines()
    assert len(told) == 3
    assert told[0].endswith(
        "service.a.options.to: forwarding loop: "
        "connections come back here by way of service.b, service.c"
    )


def test_however_many_targets_refuse_the_client_is_told(start_superd: Start) -> None:
    targets = ", ".join(f'"unix://@superd-test-nobody-{number}"' for number in range(400))
    served = start_superd(
        f"""
        [service.web]
        plugin = "forward"
        listen = "tcp://127.0.0.1:0"
        options = {{ to = [{targets}] }}
        """
    )
    with served.connect("web") as client, pytest.raises(ConnectionResetError):
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
def test_a_client_that_has_the_port_of_a_connection_elsewhere_is_served(
    start_superd: Start,
) -> None:
    """The kernel gives a port to connections to different places."""
    with network_namespace() as space, contextlib.ExitStack() as stack:
        space.sysctl("net.ipv4.ip_local_port_range=40000 40003")
        served = start_superd(CHAIN, *space.wrapper)
        stack.callback(served.stop)
        for _ in range(4):
            with space.inside():
                client = stack.enter_context(connect_tcp(("127.0.0.1", 7001)))
            client.sendall(b"x")
            assert client.recv(1) == b"x"
