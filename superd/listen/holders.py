"""Finds out which processes have a socket open, and which sockets are bound to an address, from
/proc (proc(5)).

Used by the master and the command line. Finds only what this process may see of others: a process
of another user takes CAP_SYS_PTRACE. Raises nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from superd.net.addresses import Address

TABLES = Path("/proc/self/net")
INTERNET_TABLES = {"tcp": ("tcp", "tcp6"), "udp": ("udp", "udp6")}  # by kind of socket
UNIX_LISTENS = "00010000"  # flags with __SO_ACCEPTCON; a connection has its listener's path, too
UNIX_DATAGRAM = "0002"  # the type SOCK_DGRAM


def holders_of(inodes: Collection[int], pids: Iterable[int] | None = None) -> list[int]:
    """Return the processes, of `pids` or of all, that have one of these sockets open."""
    links = {f"socket:[{inode}]" for inode in inodes}
    if not links:
        return []
    among = _all_processes() if pids is None else pids
    return [pid for pid in among if not links.isdisjoint(_links_of(pid))]


def sockets_at(addresses: Iterable[Address]) -> set[int]:
    """Return the inodes of the sockets, of any process, that wait for clients at the ports or paths
    of some addresses.
    """
    ports: dict[str, set[str]] = {kind: set() for kind in INTERNET_TABLES}
    paths = set()
    for address in addresses:
        if address.transport.is_unix:
            paths.add(address.path)
        elif address.transport.value in ports:
            ports[address.transport.value].add(f"{address.port:04X}")
    found = {
        int(inode)
        for kind, names in INTERNET_TABLES.items()
        for name in names if ports[kind]
        for _, local, remote, *_, inode in _rows(name, 10)
        if local.rpartition(":")[2] in ports[kind] and remote.endswith(":0000")
    }  # fmt: skip
    if paths:
        rows = (row for row in _rows("unix", 8) if row[-1] in paths)
        found |= {int(row[6]) for row in rows if row[3] == UNIX_LISTENS or row[4] == UNIX_DATAGRAM}
    return found


def _rows(table: str, columns: int) -> Iterator[list[str]]:
    """Yield the first columns of the lines of a table of sockets that have so many."""
    with contextlib.suppress(OSError):
        for line in (TABLES / table).read_text(errors="replace").splitlines()[1:]:
            words = line.split(maxsplit=columns - 1 if table == "unix" else -1)
            if len(words) >= columns:
                yield words[:columns]


def _links_of(pid: int) -> Iterator[str]:
    directory = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for number in os.listdir(directory):
            with contextlib.suppress(OSError):  # closed meanwhile
                yield os.readlink(f"{directory}/{number}")


def _all_processes() -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield from (int(name) for name in os.listdir("/proc") if name.isdecimal())
