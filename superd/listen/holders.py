"""Finds out which processes have a socket open, and which sockets are bound to an address, from
/proc (proc(5)).

Used by the master and the command line. Finds only what this process may see of others: a process
of another user takes CAP_SYS_PTRACE. Raises nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from superd.errors import printable
from superd.net.addresses import Address
from superd.process.procfs import stat_fields

TABLES = Path("/proc/self/net")
INTERNET_TABLES = {"tcp": ("tcp", "tcp6"), "udp": ("udp", "udp6")}  # by kind of socket
UNIX_LISTENS = "00010000"  # flags with __SO_ACCEPTCON; a connection has its listener's path, too
UNIX_DATAGRAM = "0002"  # the type SOCK_DGRAM
MAX_HOLDERS_SHOWN = 3


def described_holders(address: Address) -> str:
    """Return the processes that have a socket at an address, such as `process 42 (nginx)`, without
    those that have it from their parent; "another process" where that cannot be found out.
    """
    found = holders_of(sockets_at([address]))
    pids = sorted(pid for pid in found if _parent_of(pid) not in found)
    texts = [f"{pid} ({name})" for pid in pids[:MAX_HOLDERS_SHOWN] if (name := _name_of(pid))]
    if not texts:
        return "another process"
    more = " and more" if len(pids) > MAX_HOLDERS_SHOWN else ""
    return f"process{'es' if len(texts) > 1 else ''} {', '.join(texts)}{more}"


def _parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(stat_fields(pid)[1])
    return 0


def _name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return printable(Path(f"/proc/{pid}/comm").read_text(errors="replace").strip(": \n"))
    return ""


def holders_of(inodes: Collection[int], pids: Iterable[int] | None = None) -> list[int]:
    """Return the processes, of `pids` or of all, that have one of these sockets open."""
    links = {f"socket:[{inode}]" for inode in inodes}
    if not links:
        return []
    among = _all_processes() if pids is None else pids
    return [pid for pid in among if not links.isdisjoint(_links_of(pid))]


def sockets_at(addresses: Iterable[Address]) -> set[int]:
    """Return the inodes of the sockets, of any process, that wait for clients at some addresses, or
    at the wildcard with their port.
    """
    ends: dict[str, set[tuple[str, str]]] = {kind: set() for kind in INTERNET_TABLES}
    paths = set()
    for address in addresses:
        if address.transport.is_unix:
            paths.add(address.path)
        elif address.transport.value in ends:
            ends[address.transport.value].add((_in_table(address), f"{address.port:04X}"))
    found = {
        int(inode)
        for kind, names in INTERNET_TABLES.items()
        for name in names if ends[kind]
        for _, local, remote, *_, inode in _rows(name, 10)
        if remote.endswith(":0000") and _is_at(local, ends[kind])
    }  # fmt: skip
    if paths:
        rows = (row for row in _rows("unix", 8) if row[-1] in paths)
        found |= {int(row[6]) for row in rows if row[3] == UNIX_LISTENS or row[4] == UNIX_DATAGRAM}
    return found


def _in_table(address: Address) -> str:
    """Return a host as the tables have it: words in hexadecimal; "" for every host."""
    if address.is_wildcard or address.is_name:
        return ""
    host = address.host.partition("%")[0]
    packed = socket.inet_pton(address.family, host)
    words = (packed[first : first + 4] for first in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def _is_at(local: str, ends: Collection[tuple[str, str]]) -> bool:
    """Return whether a socket's local end, whose host may be the wildcard, is among `ends`. An IPv4
    host is the last word of an IPv6 socket's.
    """
    host, _, port = local.partition(":")
    return any(port == of and (host.endswith(wanted) or not host.strip("0")) for wanted, of in ends)


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
