"""The programs that superd replaces: xinetd and openbsd-inetd, from Debian, not installed.

They run with only their internal services and without limits on rates and connections. Both need
root.
Raises BenchError if a peer cannot be downloaded; the benchmark then skips it.
"""

from tests.bench.packages import PACKAGES, need_root, program, write
from tests.bench.servers import Address, Server

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
# xinetd looks up the name of each client that it forks for. A slow name server would dominate the
# figures, so a mount namespace gives xinetd an nsswitch.conf without DNS.
WITHOUT_DNS = 'mount --bind "$0" /etc/nsswitch.conf && exec "$@"'

# openbsd-inetd finds its internal services only by name in /etc/services, not by number. They get
# the ports of that file, on a loopback address that no other program uses.
INETD_CONFIGURATION = """\
{host}:echo stream tcp4 nowait root internal
{host}:daytime stream tcp4 nowait root internal
{host}:7408 stream tcp4 nowait nobody /bin/cat cat
"""
# Its -R has no "unlimited": 0 is invalid and leaves the default of 256 a minute.
INETD_RATE = "1000000000"


def xinetd() -> Server:
    """Return xinetd, configured."""
    echo, daytime = Address("127.0.0.1", 7207), Address("127.0.0.1", 7213)
    services = {"echo": echo, "daytime": daytime}
    sections = [XINETD_SERVICE.format(name=n, address=a) for n, a in services.items()]
    cat = Address("127.0.0.1", 7208)
    sections.append(XINETD_PROGRAM.format(address=cat))
    return Server(
        "xinetd",
        xinetd_command("xinetd", "".join(sections)),
        echo,
        daytime,
        cat,
        no_udp="it drops the datagrams that arrive while it answers one",
    )


def xinetd_command(name: str, services: str) -> tuple[str, ...]:
    """Write the configuration of xinetd with some services; return the command that runs it."""
    need_root("xinetd")
    words = program("xinetd", "usr/sbin/xinetd", ("libwrap0",))
    configuration = write(f"{name}.conf", XINETD_DEFAULTS + services)
    nsswitch = write("nsswitch.conf", "hosts: files\n")
    logs = ("-filelog", str(PACKAGES / f"{name}.messages"))
    options = ("-dontfork", "-f", str(configuration), "-pidfile", str(PACKAGES / f"{name}.pid"))
    return ("unshare", "--mount", "sh", "-c", WITHOUT_DNS, str(nsswitch), *words, *options, *logs)


def openbsd_inetd() -> Server:
    """Return openbsd-inetd, configured."""
    need_root("openbsd-inetd")
    words = program("openbsd-inetd", "usr/sbin/inetd", ("libwrap0",))
    host = "127.0.0.7"
    configuration = write("inetd.conf", INETD_CONFIGURATION.format(host=host))
    return Server(
        "openbsd-inetd",
        (*words, "-i", "-R", INETD_RATE, str(configuration)),
        Address(host, 7),
        Address(host, 13),
        Address(host, 7408),
        no_udp="it answers no datagram from a loopback address",
    )
