"""The environment of a program: the variables of UCSPI, inetd and systemd, and nothing else.

Values are numeric addresses and fixed names, so a client cannot choose them. The exception is the
path of a client's unix socket, which is passed only if all its characters are printable.
"""

from __future__ import annotations

from collections.abc import Mapping

from superd.plugin import Address, Transport

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(base: Mapping[str, str], local: Address, peer: Address | None) -> dict[str, str]:
    """Return the environment for one client; `peer` is None if the program accepts itself.

    UCSPI (tcp-environ(5)): PROTO, TCPLOCALIP, TCPLOCALPORT, TCPREMOTEIP, TCPREMOTEPORT, or the same
    with UDP, or IPCLOCALPATH and IPCREMOTEPATH; systemd's and inetd's: REMOTE_ADDR, REMOTE_PORT.
    """
    variables = {"PATH": PATH, **base}
    transport = local.transport
    if transport.is_unix:
        variables |= {"PROTO": "IPC", "IPCLOCALPATH": local.path}
        if peer is not None and peer.path and peer.path.isprintable():
            variables["IPCREMOTEPATH"] = peer.path
        return variables
    proto = "TCP" if transport is Transport.TCP else "UDP"
    variables |= {"PROTO": proto, f"{proto}LOCALIP": local.host}
    variables[f"{proto}LOCALPORT"] = str(local.port)
    if peer is not None:
        port = str(peer.port)
        variables |= {f"{proto}REMOTEIP": peer.host, f"{proto}REMOTEPORT": port}
        variables |= {"REMOTE_HOST": peer.host, "REMOTE_ADDR": peer.host, "REMOTE_PORT": port}
    return variables
