"""Looks up the addresses of a name and their lifetime, from DNS, /etc/hosts or the system.

Runs in the resolver, on its loop, and never blocks it. The lookups are made with c-ares, as
getaddrinfo(3) reports no TTL and blocks a thread. The system's getaddrinfo(3) is called if c-ares
finds nothing, as the system may have other sources of names (nsswitch.conf(5)). It is called first
for a name in /etc/hosts: c-ares merges all hosts there that share a name or an address, and returns
the addresses of all for each. Only numeric addresses are accepted from an answer. Never raises.
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

# Lifetimes, in seconds.
MIN_TTL = 1.0
MAX_TTL = 3600.0
HOSTS_FILE_TTL = 2.0  # short, so that an edit of the file takes effect
SYSTEM_TTL = 30.0  # getaddrinfo(3) reports none
FAILURE_TTL = 5.0  # short, so that a target that returns is found soon

MAX_ADDRESSES = 16  # of one name
SYSTEM_LOOKUP_THREADS = 4  # apart from those for clients' names, which clients can keep busy
HOSTS_FILE = Path("/etc/hosts")
WATCHED_FILES = (HOSTS_FILE, Path("/etc/resolv.conf"), Path("/etc/nsswitch.conf"))

Found = tuple[tuple[str, ...], float]  # addresses or names, and their lifetime in seconds


def load() -> None:
    """Import the library; only the resolver does, before confinement hides the files."""
    import aiodns  # noqa: F401


class Addresses:
    """Looks up through one channel of c-ares, which keeps track of name servers that fail.

    The channel is replaced when a file that it has read changes. It is also replaced
    `failure_ttl` seconds after a failed lookup: c-ares caches "no such name" for as long as the
    name server says, while a target that returns should be found soon.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, failure_ttl: float = FAILURE_TTL) -> None:
        self._loop = loop
        self._failure_ttl = failure_ttl
        self._threads = ThreadPoolExecutor(SYSTEM_LOOKUP_THREADS)
        self._hosts_names: frozenset[str] = frozenset()
        self._channel: DNSResolver | None = None
        self._channel_until = math.inf
        self._file_states: list[object] = []

    async def look_up(self, name: str, is_again: bool = False) -> Found:
        """Return the numeric addresses of a name in the order of RFC 6724; none if not found.

        `is_again` asks a name server although the time to live of an earlier answer is not over,
        which c-ares would repeat.
        """
        from aiodns.error import ARES_ETIMEOUT, DNSError

        if is_again:
            self._channel_until = self._loop.time()
        try:
            channel = self._current()  # held here, as dropping a channel cancels its queries
            if name.removesuffix(".") in self._hosts_names:
                return await self._ask_system(name, HOSTS_FILE_TTL)
            answer = await channel.getaddrinfo(name)
        except DNSError as error:
            if error.args[0] == ARES_ETIMEOUT:
                return (), self._failure_ttl  # the system would block a thread on the same servers
            valid_until = self._loop.time() + self._failure_ttl
            self._channel_until = min(self._channel_until, valid_until)
        except Exception:  # noqa: BLE001  c-ares cannot start without memory or descriptors
            self._channel = None
        else:
            if found := _numeric(node.addr[0].decode("ascii") for node in answer.nodes):
                ttls = [node.ttl for node in answer.nodes] + [name.ttl for name in answer.cnames]
                return found, min(max(min(ttls), MIN_TTL), MAX_TTL)
        return await self._ask_system(name, SYSTEM_TTL)

    def _current(self) -> DNSResolver:
        from aiodns import DNSResolver

        states = [_state(file) for file in WATCHED_FILES]
        is_expired = self._loop.time() >= self._channel_until
        if self._channel is None or is_expired or states != self._file_states:
            self._hosts_names = _names_in_hosts_file()
            self._channel = DNSResolver(loop=self._loop)
            self._channel_until = math.inf
            self._file_states = states
        return self._channel

    async def _ask_system(self, name: str, ttl: float) -> Found:
        ask = partial(socket.getaddrinfo, name.encode("ascii"), None, type=socket.SOCK_STREAM)
        try:
            entries = await self._loop.run_in_executor(self._threads, ask)
        except (OSError, ValueError, RuntimeError):  # RuntimeError: no thread can be started
            return (), self._failure_ttl
        found = _numeric(str(entry[4][0]) for entry in entries)
        return (found, ttl) if found else ((), self._failure_ttl)


def _names_in_hosts_file() -> frozenset[str]:
    """Return every name in /etc/hosts; the system resolves them."""
    try:
        text = HOSTS_FILE.read_bytes().decode("ascii", "replace").lower()
    except OSError:
        return frozenset()
    lines = [line.partition("#")[0].split() for line in text.splitlines()]
    return frozenset(word for line in lines for word in line[1:])


def _numeric(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the texts that are addresses, without those of one interface (`%scope`)."""
    return tuple(islice(dict.fromkeys(filter(_is_address, texts)), MAX_ADDRESSES))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _state(file: Path) -> object:
    """Return a value that changes when a file is edited or replaced."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
