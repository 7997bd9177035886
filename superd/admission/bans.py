"""Which addresses and networks are banned, in memory that the master and all workers share.

Made by the master before it forks, and written by it alone; workers only read, and cannot write
once they have said `write_no_more`, before any plugin's code runs. There is no lock: a deadline is
the last that is written of a ban, and the first that is taken away. Never raises.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator

from superd.admission.memory import CELLS, Memory, key_of, make_secret, secret_of
from superd.net.addresses import unmapped
from superd.net.patterns import IPNetwork

MOST = 10_000
SLOTS = 1 << 15
PROBES = 32  # slots that one ban may be found in

# cells: a secret, the number of bans, then bits for the lengths in use, then slots
_NUMBER = CELLS
_LENGTHS, _FIRST = _NUMBER + 1, _NUMBER + 5


class BanTable:
    """A table of deadlines, in ns of the monotonic clock, by network.

    A slot is found by a secret: see superd.admission.memory. `descriptor` is that of another
    program's table.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.memory = Memory("bans", _FIRST + 2 * SLOTS, descriptor)
        self._cells = self.memory.cells
        if descriptor is None:
            make_secret(self._cells)
        self._secret = secret_of(self._cells)
        self._lengths: dict[tuple[int, int], int] = {}  # how many bans; known to the master only

    def write_no_more(self) -> None:
        """Have this process only read the table."""
        self.memory.write_no_more()
        self._cells = self.memory.cells

    def __len__(self) -> int:
        return self._cells[_NUMBER]

    def is_banned(self, host: str, now: int) -> bool:
        """Tell whether a numeric host is banned at a moment."""
        cells = self._cells
        if not cells[_NUMBER]:
            return False
        host = unmapped(host)
        if ":" in host:
            packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
            version, width = 6, 128
        else:
            packed, version, width = socket.inet_aton(host), 4, 32
        address = int.from_bytes(packed, "big")
        for length in self._lengths_in_use(version):
            key = self._key(version, length, address >> (width - length))
            slot = self._slot(key)
            if slot is not None and cells[slot + 1] > now:
                return True
        return False

    def add(self, network: IPNetwork, until: int) -> bool:
        """Ban a network, or ban it for longer or shorter; False where there is no room."""
        key = self._key_of(network)
        slot = self._slot(key)
        if slot is None or not self._cells[slot + 1]:
            slot = self._unused(key) if slot is None else slot
            if slot is None:
                return False
            self._cells[slot] = key
            self._count(network, 1)
        self._cells[slot + 1] = until
        return True

    def remove(self, network: IPNetwork) -> None:
        slot = self._slot(self._key_of(network))
        if slot is not None and self._cells[slot + 1]:
            self._cells[slot + 1] = 0
            self._count(network, -1)

    def knows(self, network: IPNetwork) -> bool:
        """Tell whether another program has put a ban into the table, and go on with it."""
        slot = self._slot(self._key_of(network))
        if slot is None or not self._cells[slot + 1]:
            return False
        kind = (network.version, network.prefixlen)
        self._lengths[kind] = self._lengths.get(kind, 0) + 1
        return True

    def _key_of(self, network: IPNetwork) -> int:
        bits = network.max_prefixlen - network.prefixlen
        return self._key(network.version, network.prefixlen, int(network.network_address) >> bits)

    def _key(self, version: int, length: int, prefix: int) -> int:
        return key_of((prefix << 8 | length) << 8 | version, *self._secret)

    def _count(self, network: IPNetwork, change: int) -> None:
        kind = (network.version, network.prefixlen)
        number = self._lengths[kind] = self._lengths.get(kind, 0) + change
        cell, bit = _bit(*kind)
        if number:
            self._cells[cell] |= bit
        else:
            self._cells[cell] &= ~bit
        self._cells[_NUMBER] += change

    def _lengths_in_use(self, version: int) -> Iterator[int]:
        first, last = (_LENGTHS, _LENGTHS + 1) if version == 4 else (_LENGTHS + 1, _FIRST)
        for number, bits in enumerate(self._cells[first:last]):
            while bits:
                lowest = bits & -bits
                yield number * 64 + lowest.bit_length() - 1
                bits ^= lowest

    def _slot(self, key: int) -> int | None:
        cells = self._cells
        for probe in range(PROBES):
            slot = _FIRST + (key + probe) % SLOTS * 2
            if cells[slot] == key:
                return slot
            if not cells[slot]:
                return None
        return None

    def _unused(self, key: int) -> int | None:
        for probe in range(PROBES):
            slot = _FIRST + (key + probe) % SLOTS * 2
            if not self._cells[slot + 1]:
                return slot
        return None


def network_of(host: str) -> IPNetwork:
    """Return a numeric host as a network of one address; IPv4-mapped IPv6 is IPv4."""
    return ipaddress.ip_network(unmapped(host).partition("%")[0])


def _bit(version: int, length: int) -> tuple[int, int]:
    """Return the cell and the bit that tell whether a length is in use; /0 to /128 take 3 cells."""
    if version == 4:
        return _LENGTHS, 1 << length
    return _LENGTHS + 1 + length // 64, 1 << length % 64
