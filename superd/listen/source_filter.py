"""A socket filter that drops the packets of some networks (SO_ATTACH_FILTER, socket(7)), where a
program accepts the clients itself.

Used by the master. The filter is a classic BPF program of the kernel: it decides by the source in
the IP header, and connections that are open already are unaffected. Raises OSError.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence

from superd.net.patterns import IPNetwork

SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS, linux/bpf_common.h
NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF, linux/filter.h: offsets from here on are into it
SOURCE_OF_IPV4 = (NETWORK_HEADER + 12,)  # the words of the source's address
SOURCE_OF_IPV6 = tuple(range(NETWORK_HEADER + 8, NETWORK_HEADER + 24, 4))
WORD = 0xFFFFFFFF

LOAD_WORD, LOAD_BYTE, LOAD_KEPT, KEEP, AND, SHIFT_RIGHT = 0x20, 0x30, 0x60, 0x02, 0x54, 0x74
JUMP, JUMP_IF_EQUAL, RETURN = 0x05, 0x15, 0x06

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, two jumps, operand

Instruction = tuple[int, int, int, int]

_PASS: Instruction = (RETURN, 0, 0, WORD)
_DROP: Instruction = (RETURN, 0, 0, 0)


class SourceFilter:
    """A filter for any number of sockets. `room` says how many networks, the first ones, fit into
    it.
    """

    def __init__(self, networks: Sequence[IPNetwork]) -> None:
        self._networks = networks
        self._make(_fitting(networks))

    def _make(self, room: int) -> None:
        instructions = program(self._networks[:room])
        code = b"".join(_INSTRUCTION.pack(*one) for one in instructions)
        self.room = room
        self._code = ctypes.create_string_buffer(code)  # has to outlive the pointer to it
        address = ctypes.addressof(self._code)
        self._option = struct.pack("@HP", len(instructions), address)  # struct sock_fprog

    def attach(self, sock: socket.socket) -> None:
        """Drop the packets of these networks, instead of those before."""
        while self.room:
            try:
                sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, self._option)
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                self._make(self.room // 2)  # net.core.optmem_max is small
            else:
                return
        detach(sock)


def detach(sock: socket.socket) -> None:
    """Let all packets pass. Raises nothing."""
    with contextlib.suppress(OSError):  # there is no filter
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def program(networks: Iterable[IPNetwork]) -> list[Instruction]:
    """Return the filter's instructions."""
    ipv4, ipv6 = _kept(SOURCE_OF_IPV4), _kept(SOURCE_OF_IPV6)
    for network in networks:
        (ipv4 if network.version == 4 else ipv6).extend(_drop(network))
    ipv4.append(_PASS)
    return [
        (LOAD_BYTE, 0, 0, NETWORK_HEADER),
        (SHIFT_RIGHT, 0, 0, 4),  # the IP version
        (JUMP_IF_EQUAL, 0, 1, 4),
        (JUMP, 0, 0, 1),
        (JUMP, 0, 0, len(ipv4)),
        *ipv4,
        *ipv6,
        _PASS,
    ]


def _kept(offsets: Iterable[int]) -> list[Instruction]:
    """Keep words of the packet: reading them from there costs more memory each time."""
    return [
        one
        for number, offset in enumerate(offsets)
        for one in ((LOAD_WORD, 0, 0, offset), (KEEP, 0, 0, number))
    ]


def _drop(network: IPNetwork) -> list[Instruction]:
    """Return the instructions that drop a packet from a network, and else continue after them."""
    steps: list[list[Instruction]] = []
    values, masks = (
        _words(int(network.network_address), network),
        _words(int(network.netmask), network),
    )
    for number, (value, mask) in enumerate(zip(values, masks, strict=True)):
        if mask:
            load = [(LOAD_KEPT, 0, 0, number)] + ([(AND, 0, 0, mask)] if mask != WORD else [])
            steps.append([*load, (JUMP_IF_EQUAL, 0, 0, value)])
    done: list[Instruction] = [_DROP]
    for *load, (code, _, _, value) in reversed(steps):
        done = [*load, (code, 0, len(done), value), *done]
    return done


def _words(number: int, network: IPNetwork) -> Iterator[int]:
    """Return the words of 32 bits of an address, the first first."""
    return (number >> shift & WORD for shift in range(network.max_prefixlen - 32, -1, -32))


def _fitting(networks: Sequence[IPNetwork]) -> int:
    """Return how many of the first networks fit into a filter."""
    left = MAX_INSTRUCTIONS - len(program(()))
    for number, network in enumerate(networks):
        left -= len(_drop(network))
        if left < 0:
            return number
    return len(networks)
