"""The table of banned addresses and networks, in memory that the master and all workers share.

The master makes it before it forks, and only the master writes to it. Workers call `make_read_only`
before any plugin's code runs. There is no lock: the deadline of a ban is written last and cleared
first. Never raises.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator

from superd.admission.memory import (
    SECRET_CELLS,
    KeyTable,
    Memory,
    key_of,
    read_secret,
    write_secret,
)
from superd.net.addresses import unmapped
from superd.net.patterns import IPNetwork

MAX_BANS = 10_000
BUCKETS = 1 << 12
BUCKET_SLOTS = 8
SLOTS = BUCKETS * BUCKET_SLOTS
# With MAX_BANS in it, less than one bucket in 10**13 has 7 bans, so the probability that the 16
# slots of one more ban are all taken is below 10**-26.
VALUE_BYTES = 18  # of what is hashed: an IPv6 prefix, its length and the IP version

# cells: the secret, the number of bans, a bit for each prefix length in use, keys, deadlines
_NUMBER = SECRET_CELLS
_LENGTHS = _NUMBER + 1
_KEYS = _LENGTHS + 4
_DEADLINES = _KEYS + SLOTS


class BanTable:
    """A table of deadlines, in ns of the monotonic clock, by network.

    `descriptor` is that of another program's table.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.memory = Memory("bans", _DEADLINES + SLOTS, descriptor)
        if descriptor is None:
            write_secret(self.memory.cells)
        self._secret = read_secret(self.memory.cells)
        self._lengths: dict[tuple[int, int], int] = {}  # bans by prefix length; in the master only
        self._use_cells()

    def _use_cells(self) -> None:
        self._cells = self.memory.cells
        self._keys = self._cells[_KEYS:_DEADLINES]
        self._deadlines = self._cells[_DEADLINES:]
        self._table = KeyTable(self._keys, BUCKETS, 0, SLOTS)

    def make_read_only(self) -> None:
        """Map the table for reading only in this process."""
        self._keys.release()
        self._deadlines.release()
        self.memory.make_read_only()
        self._use_cells()

    def __len__(self) -> int:
        return self._cells[_NUMBER]

    def is_banned(self, host: str, now: int) -> bool:
        """Tell whether a numeric host is banned at a moment."""
        if not self._cells[_NUMBER]:
            return False
        host = unmapped(host)
        if ":" in host:
            packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
            version, width = 6, 128
        else:
            packed, version, width = socket.inet_aton(host), 4, 32
        address = int.from_bytes(packed, "big")
        for length in self._lengths_in_use(version):
            slot = self._table.find(self._key(version, length, address >> (width - length)))
            if slot >= 0 and self._deadlines[slot] > now:
                return True
        return False

    def add(self, network: IPNetwork, until: int) -> bool:
        """Ban a network, or replace the deadline of its ban; False where the table is full."""
        key = self._key_of(network)
        slot = self._table.find(key)
        if slot < 0 or not self._deadlines[slot]:
            if slot < 0:
                slot = self._table.free_slot(key, lambda slot: not self._deadlines[slot])
            if slot < 0:
                return False
            self._keys[slot] = key
            self._count(network, 1)
        self._deadlines[slot] = until
        return True

    def remove(self, network: IPNetwork) -> None:
        slot = self._table.find(self._key_of(network))
        if slot >= 0 and self._deadlines[slot]:
            self._deadlines[slot] = 0
            self._count(network, -1)

    def adopt(self, network: IPNetwork) -> bool:
        """Count a ban that another program has put into the table; False where it is not there."""
        slot = self._table.find(self._key_of(network))
        if slot < 0 or not self._deadlines[slot]:
            return False
        kind = (network.version, network.prefixlen)
        self._lengths[kind] = self._lengths.get(kind, 0) + 1
        return True

    def _key_of(self, network: IPNetwork) -> int:
        bits = network.max_prefixlen - network.prefixlen
        return self._key(network.version, network.prefixlen, int(network.network_address) >> bits)

    def _key(self, version: int, length: int, prefix: int) -> int:
        value = (prefix << 8 | length) << 8 | version
        return key_of(self._secret, value.to_bytes(VALUE_BYTES, "big"))

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
        first, last = (_LENGTHS, _LENGTHS + 1) if version == 4 else (_LENGTHS + 1, _KEYS)
        for number, bits in enumerate(self._cells[first:last]):
            while bits:
                lowest = bits & -bits
                yield number * 64 + lowest.bit_length() - 1
                bits ^= lowest


def network_of(host: str) -> IPNetwork:
    """Return a numeric host as a network of one address; IPv4-mapped IPv6 is IPv4."""
    return ipaddress.ip_network(unmapped(host).partition("%")[0])


def _bit(version: int, length: int) -> tuple[int, int]:
    """Return the cell and the bit of a prefix length; 0 to 128 of IPv6 take 3 cells."""
    if version == 4:
        return _LENGTHS, 1 << length
    return _LENGTHS + 1 + length // 64, 1 << length % 64
