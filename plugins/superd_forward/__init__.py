"""forward: passes each connection, and each source's datagrams, on to another server.

Options: to, balance, connect-timeout, half-close-timeout, datagram-timeout,
         datagram-replies, bind-to, proxy-protocol, fail-after, retry-after, probe.
Example: plugin = "forward", listen = "tcp://*:80", options = { to = "tcp://10.0.0.5:8080" }
See also: socat(1), haproxy(1), systemd-socket-proxyd(8)
"""

from superd.plugin import Service, hookimpl
from superd_forward.service import Forward


@hookimpl
def superd_services() -> list[type[Service]]:
    return [Forward]
