"""The measured configurations of superd, and the C server as a baseline."""

import sys

from tests.bench.servers import Address, Server
from tests.bench.workspace import CACHE, build

DAEMON = """\
[daemon]
workers = 1
pid-file = "{cache}/{name}.pid"
control-socket = "{cache}/{name}.sock"
ban-file = "{cache}/{name}.bans"
record-log = "{cache}/{name}.records"
record-format = "json"

[defaults]
{defaults}
"""
SERVICES = """\

[service.echo]
plugin = "echo"
listen = ["tcp://{echo}", "udp://{echo}"]
model = "{model}"

[service.daytime]
plugin = "daytime"
listen = "tcp://{daytime}"
"""
PROGRAM = """\

[service.cat]
plugin = "exec"
listen = "tcp://{cat}"
options = {{ command = "/bin/cat" }}
"""

# The peers apply no limits and log no connections.
WITHOUT_RECORDS = "record = []"
# Limits that an operator would set: each is checked, and none is reached.
WITH_POLICY = """\
allow = [{networks}]
max-connections = 100000
rate = "1000000/s"
max-per-source = 100000
rate-per-source = "1000000/s"
"""
POLICY_WORKS = ("connect-echo-close", "daytime")


def superd() -> Server:
    """Return the plain superd, and write its configuration."""
    return _superd("superd", 7100, WITHOUT_RECORDS)


def superd_program() -> Server:
    """Return superd with a program to run for each connection."""
    return _superd("superd-program", 7160, WITHOUT_RECORDS, only=("program",))


def superd_policy() -> Server:
    """Return superd with access lists, limits, and a record of each connection in JSON."""
    policy = WITH_POLICY.format(networks='"127.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"')
    return _superd("superd-policy", 7120, policy, only=POLICY_WORKS)


def superd_networks() -> Server:
    """Return superd with the same policy and ten thousand more networks."""
    names = [f'"10.{n >> 8}.{n & 255}.0/24"' for n in range(10_000)]
    policy = WITH_POLICY.format(networks=", ".join(['"127.0.0.0/8"', *names]))
    return _superd("superd-networks", 7140, policy, only=POLICY_WORKS)


def superd_fork() -> Server:
    """Return superd with a blocking echo, in a process for each connection."""
    return _superd("superd-fork", 7180, WITHOUT_RECORDS, only=("connect-echo-close",), model="fork")


def superd_prefork() -> Server:
    """Return superd with a blocking echo in preforked processes."""
    only = ("connect-echo-close",)
    return _superd("superd-prefork", 7240, WITHOUT_RECORDS, only=only, model="prefork")


def _superd(
    name: str, base: int, defaults: str, only: tuple[str, ...] = (), model: str = "loop"
) -> Server:
    echo, daytime = Address("127.0.0.1", base + 7), Address("127.0.0.1", base + 13)
    cat = Address("127.0.0.1", base + 8) if "program" in only else None
    services = (SERVICES + (PROGRAM if cat else "")).format(
        echo=echo, daytime=daytime, cat=cat, model=model
    )
    return Server(name, superd_command(name, defaults, services), echo, daytime, cat, only=only)


def superd_command(name: str, defaults: str, services: str) -> tuple[str, ...]:
    """Write the configuration of superd with some services; return the command that runs it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / f"{name}.records").unlink(missing_ok=True)
    configuration = CACHE / f"{name}.toml"
    daemon = DAEMON.format(cache=CACHE, name=name, defaults=defaults)
    configuration.write_text(daemon + services)
    return (sys.executable, "-P", "-m", "superd", "run", "-c", str(configuration))


def epoll_server() -> Server:
    """Return the baseline: the same services in bare C."""
    echo, daytime = Address("127.0.0.1", 7307), Address("127.0.0.1", 7313)
    return Server("epoll-c", epoll_command(echo, daytime), echo, daytime)


def epoll_command(echo: Address, daytime: Address) -> tuple[str, ...]:
    """Return the command that runs the C server."""
    return (str(build("epoll_server")), echo.host, str(echo.port), str(daytime.port))
