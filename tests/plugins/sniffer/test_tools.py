"""Ordinary programs, recognised by their first bytes; each is skipped if it is not installed."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.sniffer.knocking import Knocks, Line, lines
from tests.support.harness import Superd, until

pytestmark = pytest.mark.slow

TOOLS = {
    "curl -s http://127.0.0.1:{tcp}/path": "http",
    "curl -s --http2-prior-knowledge http://127.0.0.1:{tcp}/": "http2",
    "curl -sk https://localhost:{tcp}/": "tls",
    "curl -sk --tls-max 1.2 https://localhost:{tcp}/": "tls",
    "curl -s --socks5 127.0.0.1:{tcp} http://192.0.2.1/": "socks5",
    "curl -s --socks4 127.0.0.1:{tcp} http://192.0.2.1/": "socks4",
    "curl -s --proxytunnel -x http://127.0.0.1:{tcp} http://192.0.2.1/": "http",
    "curl -s ldap://127.0.0.1:{tcp}/": "ldap",
    "curl -s mqtt://127.0.0.1:{tcp}/topic": "mqtt",
    "curl -s rtsp://127.0.0.1:{tcp}/": "rtsp",
    "curl -s tftp://127.0.0.1:{udp}/file": "tftp",
    "openssl s_client -connect 127.0.0.1:{tcp} -servername name.example": "tls",
    "openssl s_client -dtls1_2 -connect 127.0.0.1:{udp}": "dtls",
    "ssh -F none -o BatchMode=yes -p {tcp} 127.0.0.1": "ssh",
    "redis-cli -h 127.0.0.1 -p {tcp} ping": "redis",
    "smbclient -p {tcp} -N -L 127.0.0.1": "smb",
    "dig @127.0.0.1 -p {udp} +tries=1 example.com": "dns",
    "dig @127.0.0.1 -p {tcp} +tcp +tries=1 example.com": "dns",
    "psql -h 127.0.0.1 -p {tcp} -U nobody": "postgresql",
    "ldapsearch -x -H ldap://127.0.0.1:{tcp}": "ldap",
    "git ls-remote git://127.0.0.1:{tcp}/repository": "git",
    "iperf3 -c 127.0.0.1 -p {tcp}": "iperf3",
    "nc -X 5 -x 127.0.0.1:{tcp} 192.0.2.1 80": "socks5",
    "tftp 127.0.0.1 {udp} -c get file": "tftp",
}
NUMBER = len(TOOLS)
ALL = ", ".join(f'"{kind}://127.0.0.1:0"' for kind in ("tcp", "udp") for _ in range(NUMBER))

TOML = f"""
[daemon]
workers = 1

[service.silent]
plugin = "sniffer"
listen = [{ALL}]
options = {{ capture = {{ time = "500ms" }}, output = "{{directory}}/silent.out" }}

[service.ports]
plugin = "sniffer"
listen = [{ALL}]
options = {{ output = "{{directory}}/ports.out" }}

[service.greeting]
plugin = "sniffer"
listen = "tcp://127.0.0.1:0"
[service.greeting.options]
banner = "what?\\r\\n"
capture = {{ time = "200ms" }}
output = "{{directory}}/greeting.out"
"""


@contextlib.contextmanager
def running(command: list[str], directory: Path) -> Iterator[None]:
    """Run a program that gets no answer and no input."""
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(
        command, stdin=pipe, stdout=quiet, stderr=quiet, cwd=directory
    ) as process:
        try:
            yield
        finally:
            process.kill()


def ports_of(superd: Superd, service: str, transport: str) -> list[int]:
    """Return all ports of a service; the log at the start has only some."""
    (listen,) = (one["listen"] for one in superd.answer()["services"] if one["name"] == service)
    return [int(text.rpartition(":")[2]) for text in listen if text.startswith(transport)]


@pytest.fixture(scope="module")
def first_lines(served: Superd) -> dict[str, Line]:
    """The first line of each installed program; all of them run at the same time."""
    ports = {}
    with contextlib.ExitStack() as stack:
        free = zip(
            ports_of(served, "silent", "tcp"), ports_of(served, "silent", "udp"), strict=True
        )
        for command, (tcp, udp) in zip(TOOLS, free, strict=True):
            if shutil.which(command.split()[0]):
                ports[command] = tcp if "{tcp}" in command else udp
                words = command.format(tcp=tcp, udp=udp).split()
                stack.enter_context(running(words, served.directory))
        file = served.directory / "silent.out"
        until(lambda: {one["port"] for one in lines(file, 1)} >= set(ports.values()), "all of them")
    first: dict[int, Line] = {}
    for line in lines(file, 1):
        first.setdefault(line["port"], line)
    return {command: first[port] for command, port in ports.items()}


@pytest.mark.parametrize("command", TOOLS)
def test_a_program_is_recognised_by_its_first_bytes(
    first_lines: dict[str, Line], command: str
) -> None:
    if command not in first_lines:
        pytest.skip(f"needs {command.split()[0]}")
    assert first_lines[command]["protocol"] == TOOLS[command], first_lines[command]


DETAILS = {
    "curl -s http": ("target", "/path"),
    "curl -sk https": ("sni", "localhost"),
    "openssl s_client -connect": ("sni", "name.example"),
    "dig @127.0.0.1 -p {udp}": ("name", "example.com"),
    "git ls-remote": ("path", "/repository"),
    "tftp 127": ("file", "file"),
}


@pytest.mark.parametrize("start", DETAILS)
def test_details_of_the_request_are_recorded(first_lines: dict[str, Line], start: str) -> None:
    found = [line["details"] for command, line in first_lines.items() if command.startswith(start)]
    if not found:
        pytest.skip(f"needs {start.split()[0]}")
    key, value = DETAILS[start]
    assert found[0].get(key) == value, found[0]


@pytest.mark.tool("openssl", "curl")
def test_a_fingerprint_is_constant_and_differs_between_programs(
    served: Superd, first_lines: dict[str, Line]
) -> None:
    knocks = Knocks(served, "silent")
    prints: dict[str, set[str]] = {}
    for command, line in first_lines.items():
        if line["protocol"] == "tls":
            words = command.format(tcp=line["port"], udp=0).split()
            with running(words, served.directory):
                again = knocks.next()[0]
            assert again["base64"] != line["base64"]  # it contains a random number
            prints[command] = {again["details"]["ja4"], line["details"]["ja4"]}
    assert len(prints) == 3
    assert all(len(found) == 1 for found in prints.values()), prints
    assert len(set.union(*prints.values())) == 3


@pytest.mark.tool("nmap")
def test_a_port_scan_finds_all_ports_open(served: Superd) -> None:
    ports = ports_of(served, "ports", "tcp")
    done = nmap("-sT", "-p", ",".join(map(str, ports)))
    assert done.count("/tcp open ") == NUMBER
    found = lines(served.directory / "ports.out", NUMBER)
    assert {line["port"] for line in found} == set(ports)
    assert {line["bytes"] for line in found} == {0}


@pytest.mark.tool("nmap")
def test_a_version_scan_is_recognised(served: Superd) -> None:
    knocks = Knocks(served, "greeting")
    port = served.address("greeting")[1]
    nmap("-sV", "--version-intensity", "3", "-p", str(port))
    found = {line["protocol"] for line in lines(knocks.file, knocks.read + 5)}
    assert {"probe", "http", "dns", "tls"} <= found


def nmap(*arguments: str) -> str:
    """Scan ports of this superd."""
    command = ["nmap", "-n", "-Pn", *arguments, "127.0.0.1"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, stdin=subprocess.DEVNULL
    ).stdout
