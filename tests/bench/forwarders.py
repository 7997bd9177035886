"""Superd and its peers as forwarders of a port, each with its own C server as a backend.

The peers come from Debian. Each has one process with one thread for the traffic (socat and xinetd:
one for each connection), room for as many connections as the machine allows, no log of them, and
TCP_NODELAY if it supports that. All other settings are the defaults.
"""

import resource
import sys
from collections.abc import Callable

from tests.bench.inetds import xinetd_command
from tests.bench.own import WITHOUT_RECORDS, epoll_command, superd_command
from tests.bench.packages import PACKAGES, program, write
from tests.bench.servers import Address, Server
from tests.bench.workspace import SOURCES

# HAProxy refuses to start without two descriptors for each connection, and some more.
CONNECTIONS = min(20_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - 100)
BACKLOG = 4096

SUPERD = """\

[service.forward]
plugin = "forward"
listen = "tcp://{listen}"
options = {{ to = "tcp://{to}" }}
"""
# No idle timeout that matters, as with the other forwarders.
HAPROXY = """\
global
    maxconn {connections}
    nbthread 1
defaults
    mode tcp
    maxconn {connections}
    timeout connect 10s
    timeout client 1h
    timeout server 1h
listen forward
    bind {listen} backlog {backlog}
    server backend {to}
"""
NGINX = """\
load_module {module};
daemon off;
user root;
worker_processes 1;
pid {pid};
events {{
    worker_connections {files};
}}
stream {{
    access_log off;
    server {{
        listen {listen} backlog={backlog};
        proxy_pass {to};
        tcp_nodelay on;
    }}
}}
"""
RINETD = """\
pidlogfile {pid}
{listen.host} {listen.port} {to.host} {to.port}
"""
XINETD = """\
service forward
{{
    type = UNLISTED
    flags = NOLIBWRAP NODELAY
    socket_type = stream
    protocol = tcp
    wait = no
    user = root
    bind = {listen.host}
    port = {listen.port}
    redirect = {to.host} {to.port}
}}
"""


def direct() -> Server:
    """Return the baseline: the backend, which the load connects to directly."""
    return _backend("direct", 7500)


def plain() -> Server:
    """Return the other baseline: a minimal forwarder in Python, which cannot forward bulk data."""

    def command(listen: Address, to: Address) -> tuple[str, ...]:
        script = str(SOURCES / "plain_forwarder.py")
        return (sys.executable, "-P", script, str(listen.port), str(to.port))

    return _forwarder("python", 7580, command, only=("echo50", "echo1", "connect-echo-close"))


def superd() -> Server:
    """Return the forwarder that this benchmark is about."""

    def command(listen: Address, to: Address) -> tuple[str, ...]:
        services = SUPERD.format(listen=listen, to=to)
        return superd_command("superd-forward", WITHOUT_RECORDS, services)

    return _forwarder("superd-forward", 7510, command)


def haproxy() -> Server:
    """Return HAProxy, configured."""

    def command(listen: Address, to: Address) -> tuple[str, ...]:
        libraries = ("liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1")
        words = program("haproxy", "usr/sbin/haproxy", libraries)
        text = HAPROXY.format(listen=listen, to=to, connections=CONNECTIONS, backlog=BACKLOG)
        return (*words, "-db", "-f", str(write("haproxy.conf", text)))

    return _forwarder("haproxy", 7520, command)


def nginx() -> Server:
    """Return nginx with its stream module, configured."""

    def command(listen: Address, to: Address) -> tuple[str, ...]:
        words = program("nginx", "usr/sbin/nginx", ("libpcre2-8-0",))
        (module,) = program("libnginx-mod-stream", "usr/lib/nginx/modules/ngx_stream_module.so")
        text = NGINX.format(
            module=module,
            pid=PACKAGES / "nginx.pid",
            listen=listen,
            to=to,
            files=2 * CONNECTIONS,
            backlog=BACKLOG,
        )
        return (*words, "-e", "stderr", "-c", str(write("nginx.conf", text)))

    return _forwarder("nginx", 7530, command)


def rinetd() -> Server:
    """Return rinetd, configured."""

    def command(listen: Address, to: Address) -> tuple[str, ...]:
        words = program("rinetd", "usr/sbin/rinetd")
        text = RINETD.format(listen=listen, to=to, pid=PACKAGES / "rinetd.pid")
        return (*words, "-f", "-c", str(write("rinetd.conf", text)))

    return _forwarder("rinetd", 7540, command)


def socat() -> Server:
    """Return socat, which forks for each connection."""

    def command(listen: Address, to: Address) -> tuple[str, ...]:
        words = program("socat", "usr/bin/socat", ("libwrap0",))
        options = f"bind={listen.host},fork,reuseaddr,nodelay,backlog={BACKLOG}"
        return (*words, f"TCP4-LISTEN:{listen.port},{options}", f"TCP4:{to},nodelay")

    return _forwarder("socat", 7550, command)


def socket_proxyd() -> Server:
    """Return systemd-socket-proxyd, which gets its listener from systemd-socket-activate."""

    def command(listen: Address, to: Address) -> tuple[str, ...]:
        libraries = ("libsystemd-shared",)
        listener = program("systemd", "usr/bin/systemd-socket-activate", libraries)
        words = program("systemd", "lib/systemd/systemd-socket-proxyd", libraries)
        # socket-activate passes no environment on, so `words` sets the library path again
        return (*listener, "-l", str(listen), *words, f"--connections-max={CONNECTIONS}", str(to))

    return _forwarder("socket-proxyd", 7560, command)


def xinetd() -> Server:
    """Return xinetd with a redirected service, for which it forks."""

    def command(listen: Address, to: Address) -> tuple[str, ...]:
        return xinetd_command("xinetd-redirect", XINETD.format(listen=listen, to=to))

    return _forwarder("xinetd", 7570, command)


def _forwarder(
    name: str,
    port: int,
    command: Callable[[Address, Address], tuple[str, ...]],
    only: tuple[str, ...] = (),
) -> Server:
    """Return a forwarder with its own backend, so that no other leaves it ports in TIME_WAIT."""
    listen = Address("127.0.0.1", port)
    backend = _backend(f"{name}-backend", port + 1)
    return Server(
        name,
        command(listen, backend.echo),
        listen,
        no_udp="it forwards TCP here",
        only=only,
        backend=backend,
    )


def _backend(name: str, port: int) -> Server:
    """Return the C server on the load's core, so that the forwarder has a core to itself."""
    echo, daytime = Address("127.0.0.1", port), Address("127.0.0.1", port + 1)
    return Server(name, epoll_command(echo, daytime), echo, daytime, beside_load=True)
