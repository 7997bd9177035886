"""The addresses of a name, and how long they are valid: what DNS, /etc/hosts or the system says.

Runs in the resolver, on its loop, and never blocks it. c-ares asks, since getaddrinfo(3) does not
tell a TTL and holds a thread. Where it finds nothing the system is asked, which may know names from
elsewhere (nsswitch.conf(5)). For what stands in /etc/hosts the system is asked at once, as c-ares
takes all hosts there that share a name or an address for one, and gives each the addresses of all.
Of what is answered only numeric addresses count. Never raises.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiodns import DNSResolver

MIN_TTL = 1.0  # seconds
MAX_TTL = 3600.0
HOSTS_FILE_TTL = 2.0  # an edited file is seen
SYSTEM_TTL = 30.0  # getaddrinfo(3) does not say how long
FAILURE_TTL = 5.0  # a target that comes back is soon found
MOST_ADDRESSES = 16
THREADS = 4  # not those for clients' names, which whoever connects can keep busy
HOSTS = Path("/etc/hosts")
FILES = (HOSTS, Path("/etc/resolv.conf"), Path("/etc/nsswitch.conf"))

Found = tuple[tuple[str, ...], float]  # and for how many seconds
NOTHING: Found = ((), FAILURE_TTL)


def load() -> None:
    """Import the library, which no other process needs; before confinement, as it is in files."""
    import aiodns  # noqa: F401


class Addresses:
    """Looks up through one channel of c-ares, which knows the name servers that fail.

    There is a new one where a file that it has read has changed. c-ares remembers that there is no
    such name for as long as the name server says, but is to find one that has come back: so a
    channel which told of a failure is not asked for longer than that is valid.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._threads = ThreadPoolExecutor(THREADS)
        self._hosts: frozenset[str] = frozenset()
        self._channel: DNSResolver | None = None
        self._channel_until = math.inf
        self._files: list[object] = []

    async def look_up(self, name: str) -> Found:
        """Return the numeric addresses of a name in the order of RFC 6724."""
        from aiodns.error import ARES_ETIMEOUT, DNSError

        try:
            channel = self._current()  # is held here, since the queries of one that goes are lost
            if name.removesuffix(".") in self._hosts:
                return await self._ask_system(name, HOSTS_FILE_TTL)
            answer = await channel.getaddrinfo(name)
        except DNSError as error:
            if error.args[0] == ARES_ETIMEOUT:
                return NOTHING  # the system would ask the same, and a thread would wait with it
            valid_until = self._loop.time() + FAILURE_TTL
            self._channel_until = min(self._channel_until, valid_until)
        except Exception:  # noqa: BLE001  c-ares may not start, for want of memory or descriptors
            self._channel = None
        else:
            if found := _numeric(node.addr[0].decode("ascii") for node in answer.nodes):
                ttls = [node.ttl for node in answer.nodes] + [name.ttl for name in answer.cnames]
                return found, min(max(min(ttls), MIN_TTL), MAX_TTL)
        return await self._ask_system(name, SYSTEM_TTL)

    def _current(self) -> DNSResolver:
        from aiodns import DNSResolver

        files = [_state(file) for file in FILES]
        is_over = self._loop.time() >= self._channel_until
        if self._channel is None or is_over or files != self._files:
            self._hosts = _names_in_hosts()
            self._channel = DNSResolver(loop=self._loop)
            self._channel_until = math.inf
            self._files = files
        return self._channel

    async def _ask_system(self, name: str, valid: float) -> Found:
        ask = partial(socket.getaddrinfo, name.encode("ascii"), None, type=socket.SOCK_STREAM)
        try:
            entries = await self._loop.run_in_executor(self._threads, ask)
        except (OSError, ValueError, RuntimeError):  # RuntimeError: there can be no thread
            return NOTHING
        found = _numeric(str(entry[4][0]) for entry in entries)
        return (found, valid) if found else NOTHING


def _names_in_hosts() -> frozenset[str]:
    """Return every word of /etc/hosts; whose name it is, is the system's to say."""
    try:
        text = HOSTS.read_bytes().decode("ascii", "replace").lower()
    except OSError:
        return frozenset()
    lines = [line.partition("#")[0].split() for line in text.splitlines()]
    return frozenset(word for line in lines for word in line[1:])


def _numeric(texts: Iterable[str]) -> tuple[str, ...]:
    """Return those that are addresses, but for those that hold on one interface only."""
    return tuple(islice(dict.fromkeys(filter(_is_address, texts)), MOST_ADDRESSES))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _state(file: Path) -> object:
    """Return what is different once a file has been edited or replaced."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
