"""Migrated configurations serve: Debian's xinetd directory, and a long inetd.conf.

The internal services of inetd and xinetd use the ports of /etc/services, which a test must not
use. So each migrated address is replaced by a free port of the same transport.
"""

from __future__ import annotations

import re
import shutil
import socket
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.migrate.test_corpus import CORPUS
from tests.support.clients import connect_and_receive, exchange_digests, receive_and_close
from tests.support.harness import Superd, ask_udp, exchange, superd, until
from tests.support.programs import digest, random_bytes

LONG_DATAGRAM = b"x" * 600  # over udp an answer is never longer than its request


def migrated(dialect: str, path: Path) -> str:
    """Migrate a file; return the TOML with free ports on loopback."""
    done = superd("migrate", dialect, str(path))
    assert done.returncode == 0, done.stderr
    toml, number = re.subn(r'(?<!to = )"(tcp|udp)://[^"]+"', r'"\1://127.0.0.1:0"', done.stdout)
    assert number >= done.stdout.count("[service.")
    return toml


def check_small_services(served: Superd, stream: str, datagram: str) -> None:
    """Test the internal services of inetd and xinetd; `{}` is replaced by the service's name."""
    assert exchange(served.connect(stream.format("echo")), b"hello") == b"hello"
    assert exchange(served.connect(stream.format("discard")), b"hello") == b""
    assert re.fullmatch(rb".+\r\n", receive_and_close(served.connect(stream.format("daytime"))))
    assert len(receive_and_close(served.connect(stream.format("time")))) == 4
    with served.connect(stream.format("chargen")) as client:
        assert client.recv(10)
    for name, size in (("echo", 600), ("daytime", None), ("time", 4), ("chargen", None)):
        answer = ask_udp(served.address(datagram.format(name), "udp"), LONG_DATAGRAM)
        assert len(answer) <= len(LONG_DATAGRAM)
        assert size is None or len(answer) == size


@pytest.mark.file("/etc/services")
def test_the_services_of_debians_xinetd_serve_after_their_migration(
    start_superd: Start, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(CORPUS / "xinetd/debian", tmp_path / "etc"))
    for file in (directory / "xinetd.d").iterdir():
        file.write_text(re.sub(r"(disable\s+=) yes", r"\1 no", file.read_text()))
    (directory / "xinetd.d/local").write_text(
        "service local\n{\n\ttype = UNLISTED\n\tport = 7999\n\tsocket_type = stream\n\twait = no\n"
        "\tuser = nobody\n\tserver = /bin/cat\n\tserver_args = -u\n\tonly_from = 127.0.0.0\n}\n"
    )
    served = start_superd(migrated("xinetd", directory / "xinetd.conf"))
    check_small_services(served, "{}-stream", "{}-dgram")
    assert exchange(served.connect("local"), b"hello") == b"hello"
    names = {service["name"] for service in served.answer()["services"]}
    assert len(names) == 11
    assert not any(name.endswith("-2") or name.startswith("serv") for name in names)


REDIRECT = """
service {name}
{{
    type = UNLISTED
    socket_type = stream
    protocol = tcp
    port = {port}
    wait = no
    user = nobody
    redirect = {to}
    {more}
}}
"""


def test_a_migrated_redirect_of_xinetd_forwards(start_superd: Start, tmp_path: Path) -> None:
    target = start_superd('[service.echo]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n')
    host, port = target.address("echo")
    directory = tmp_path / "etc"
    directory.mkdir()
    services = {
        "open": (f"{host} {port}", "flags = NODELAY KEEPALIVE"),
        "single": (f"127.1 {port}", "instances = 1"),
        "closed": (f"{host} {port}", "only_from = 192.0.2.0"),
    }
    (directory / "redirects").write_text(
        "".join(
            REDIRECT.format(name=name, port=7990 + number, to=to, more=more)
            for number, (name, (to, more)) in enumerate(services.items())
        )
    )
    served = start_superd(migrated("xinetd", directory))
    data = random_bytes(1_000_000)
    with served.connect("open") as client:
        assert exchange_digests(client, data, 1) == (digest(data), digest(data))
    with served.connect("single") as first:
        first.sendall(b"hello")
        assert first.recv(10) == b"hello"
        assert connect_and_receive(served.address("single"), b"hello")[0] == b""
    assert connect_and_receive(served.address("closed"), b"hello")[0] == b""
    assert target.counts("echo")["accepted"] == 2
    assert served.counts("open")["accepted"] == 1


@pytest.mark.file("/etc/services")
def test_a_long_inetd_conf_serves_after_its_migration(start_superd: Start) -> None:
    served = start_superd(migrated("inetd", CORPUS / "inetd/long.conf"))
    check_small_services(served, "{}", "{}-2")
    for name in ("finger", "telnet", "smtp", *map(str, range(7200, 7240))):
        assert exchange(served.connect(name), name.encode()) == name.encode()
        assert served.counts(name)["accepted"] == 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for number in (1, 2):  # one program at a time gets the socket, and reads one datagram
            client.sendto(b"read me", served.address("tftp", "udp"))
            until(partial(has_served, served, "tftp", number), "the end of a program")


def has_served(served: Superd, name: str, number: int) -> bool:
    """Return whether a service has received `number` datagrams and is idle."""
    counts = served.counts(name)
    return counts["datagrams"] == number and counts["active"] == 0
