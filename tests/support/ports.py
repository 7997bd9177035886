"""Ports and an address of loopback that no other test process uses.

Test processes run in parallel: those of one run, and those of another run beside it. Each reserves
a number by an abstract socket that it keeps bound until it ends. The number selects a block
of ports, below those that Linux assigns to clients by itself, and an address of 127/8.
"""

from __future__ import annotations

import contextlib
import functools
import socket

FIRST_PORT = 25_000
LAST_PORT = 32_767  # Linux assigns ports to clients from 32,768 on (ip_local_port_range)
BLOCK_SIZE = 100
OWN_PORT = 10_000  # own_host() has the ports from here to FIRST_PORT

_reserved: list[socket.socket] = []
_taken = 0  # ports handed out so far


def free_port() -> int:
    """Return a port that no process has bound, neither for tcp nor for udp."""
    return free_range(1)


def free_ports(number: int) -> list[int]:
    """Return `number` different ports that no process has bound."""
    return [free_port() for _ in range(number)]


def free_range(number: int) -> int:
    """Return the first of `number` consecutive ports that no process has bound."""
    global _taken
    for _ in range(BLOCK_SIZE):
        start = _taken % BLOCK_SIZE
        if start + number > BLOCK_SIZE:
            _taken += BLOCK_SIZE - start
            start = 0
        _taken += number
        first = FIRST_PORT + _block() * BLOCK_SIZE + start
        if all(_is_free(port) for port in range(first, first + number)):
            return first
    raise AssertionError(f"no {number} consecutive free ports in the block of this process")


def own_host() -> str:
    """Return an address of loopback, for ports that a test cannot choose or needs by the thousand.

    Listeners of other test processes on a wildcard address have none of its ports from
    `OWN_PORT` to `FIRST_PORT`.
    """
    return f"127.77.{_block()}.1"


@functools.cache
def _block() -> int:
    """Reserve a number for this process and return it."""
    for number in range((LAST_PORT + 1 - FIRST_PORT) // BLOCK_SIZE):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.bind(f"\0superd-tests-{number}")
        except OSError:
            sock.close()
        else:
            _reserved.append(sock)
            return number
    raise AssertionError("too many test processes: no block of ports is left")


def _is_free(port: int) -> bool:
    with contextlib.ExitStack() as stack:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            probe = stack.enter_context(socket.socket(socket.AF_INET, kind))
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                return False
    return True
