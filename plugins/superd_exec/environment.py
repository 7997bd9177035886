"""What a program is told in its environment: all three dialects at once, and nothing else.

Only numeric addresses are told, and names that are fixed: a client has no say in it, but for the
name that its own unix socket has, which is told where nothing in it could mislead.
"""

from __future__ import annotations

from collections.abc import Mapping

from superd.plugin import Address, Transport

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(base: Mapping[str, str], local: Address, peer: Address | None) -> dict[str, str]:
    """Return the environment for one client; `peer` is None where a program accepts for itself.

    UCSPI (tcp-environ(5)): PROTO, TCPLOCALIP, TCPLOCALPORT, TCPREMOTEIP, TCPREMOTEPORT, or the same
    with UDP, or IPCLOCALPATH and IPCREMOTEPATH; systemd's and inetd's: REMOTE_ADDR, REMOTE_PORT.
    """
    told = {"PATH": PATH, **base}
    transport = local.transport
    if transport.is_unix:
        told |= {"PROTO": "IPC", "IPCLOCALPATH": local.path}
        if peer is not None and peer.path and peer.path.isprintable():
            told["IPCREMOTEPATH"] = peer.path
        return told
    proto = "TCP" if transport is Transport.TCP else "UDP"
    told |= {"PROTO": proto, f"{proto}LOCALIP": local.host, f"{proto}LOCALPORT": str(local.port)}
    if peer is not None:
        port = str(peer.port)
        told |= {f"{proto}REMOTEIP": peer.host, f"{proto}REMOTEPORT": port}
        told |= {"REMOTE_HOST": peer.host, "REMOTE_ADDR": peer.host, "REMOTE_PORT": port}
    return told
