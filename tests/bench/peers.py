"""The programs that superd replaces: xinetd and openbsd-inetd, from Debian, without installing.

The packages are unpacked under the cache folder and run from there, with only their internal
services and with their limits on rates and numbers lifted. Both need root.
Raises BenchError when a peer cannot be had; the benchmark then goes on without it.
"""

import os
import subprocess
from pathlib import Path
from typing import BinaryIO

from tests.bench.servers import Address, Server
from tests.bench.workspace import CACHE, BenchError, last_line

PEERS = CACHE / "peers"

XINETD_DEFAULTS = """\
defaults
{
    instances = UNLIMITED
    per_source = UNLIMITED
    cps = 1000000 1
}
"""
XINETD_SERVICE = """\
service {name}
{{
    type = INTERNAL UNLISTED
    flags = NOLIBWRAP
    socket_type = stream
    protocol = tcp
    wait = no
    user = root
    bind = {address.host}
    port = {address.port}
}}
"""
XINETD_PROGRAM = """\
service cat
{{
    type = UNLISTED
    flags = NOLIBWRAP
    socket_type = stream
    protocol = tcp
    wait = no
    user = nobody
    bind = {address.host}
    port = {address.port}
    server = /bin/cat
}}
"""
# xinetd asks for the name of each client that it forks for, and with a slow name server that is
# all one would measure: a mount namespace of its own gives it an nsswitch.conf without DNS.
WITHOUT_DNS = 'mount --bind "$0" /etc/nsswitch.conf && exec "$@"'

# openbsd-inetd knows its internal services by their names in /etc/services, never by a number:
# they get the ports of that file, on a loopback address that nobody else uses.
INETD_CONFIGURATION = """\
{host}:echo stream tcp4 nowait root internal
{host}:daytime stream tcp4 nowait root internal
{host}:7408 stream tcp4 nowait nobody /bin/cat cat
"""
# Its -R has no "unlimited" (0 is refused and leaves the default of 256 a minute).
INETD_RATE = "1000000000"


def xinetd() -> Server:
    """Return xinetd, configured."""
    program = _unpack("xinetd", "usr/sbin/xinetd")
    echo, daytime = Address("127.0.0.1", 7207), Address("127.0.0.1", 7213)
    services = {"echo": echo, "daytime": daytime}
    sections = [XINETD_SERVICE.format(name=n, address=a) for n, a in services.items()]
    cat = Address("127.0.0.1", 7208)
    sections.append(XINETD_PROGRAM.format(address=cat))
    configuration = _write("xinetd.conf", XINETD_DEFAULTS + "".join(sections))
    nsswitch = _write("nsswitch.conf", "hosts: files\n")
    log = ("-filelog", str(PEERS / "xinetd.messages"), "-pidfile", str(PEERS / "xinetd.pid"))
    command = (str(program), "-dontfork", "-f", str(configuration), *log)
    return Server(
        "xinetd",
        ("unshare", "--mount", "sh", "-c", WITHOUT_DNS, str(nsswitch), *command),
        echo,
        daytime,
        cat,
        no_udp="it throws away the datagrams that arrive while it answers one",
    )


def openbsd_inetd() -> Server:
    """Return openbsd-inetd, configured."""
    program = _unpack("openbsd-inetd", "usr/sbin/inetd")
    host = "127.0.0.7"
    configuration = _write("inetd.conf", INETD_CONFIGURATION.format(host=host))
    return Server(
        "openbsd-inetd",
        (str(program), "-i", "-R", INETD_RATE, str(configuration)),
        Address(host, 7),
        Address(host, 13),
        Address(host, 7408),
        no_udp="it answers no datagram from a loopback address",
    )


def _write(name: str, text: str) -> Path:
    path = PEERS / name
    path.write_text(text)
    return path


def _unpack(package: str, member: str) -> Path:
    """Return a program of a Debian package, which is downloaded the first time."""
    if os.geteuid() != 0:
        raise BenchError(f"{package}: it needs root")
    folder = PEERS / package
    program = folder / member
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    log = PEERS / f"{package}.apt.log"
    try:
        with log.open("wb") as output:
            _run(["apt-get", "-o", "APT::Sandbox::User=root", "download", package], folder, output)
            archive = next(folder.glob(f"{package}_*.deb"))
            _run(["dpkg", "-x", str(archive), str(folder)], folder, output)
    except (OSError, subprocess.SubprocessError, StopIteration) as error:
        raise BenchError(f"{package}: {error} ({last_line(log)})") from error
    return program


def _run(command: list[str], folder: Path, output: BinaryIO) -> None:
    subprocess.run(
        command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, timeout=60, check=True
    )
