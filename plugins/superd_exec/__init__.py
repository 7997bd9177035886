"""exec: runs a program for each connection or datagram, as inetd does.

Options: command, argv0, env, pass-env, directory, stderr, max-run-time, listen-fds.
Example: plugin = "exec", listen = "tcp://*:79", options = { command = ["/usr/sbin/fingerd", "-l"] }
See also: inetd.conf(5), tcpserver(1), systemd.socket(5)
"""

from superd.plugin import Service, hookimpl
from superd_exec.service import Exec


@hookimpl
def superd_services() -> list[type[Service]]:
    return [Exec]
