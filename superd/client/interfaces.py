"""Reads the addresses of this machine by interface from the kernel (rtnetlink(7)).

Runs in the command line. Changes nothing. Returns an empty result on a system without rtnetlink.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator

REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
DONE, ERROR, NEW_ADDRESS, GET_ADDRESS = 3, 2, 20, 22  # types of a message
ADDRESS, LOCAL = 1, 2  # attributes; on a point-to-point link ADDRESS is the peer's
HEADER = struct.Struct("=IHHII")  # nlmsghdr
BODY = struct.Struct("=BBBBI")  # ifaddrmsg
ATTRIBUTE = struct.Struct("=HH")  # rtattr
RECEIVE_SIZE = 65536  # bytes


def interfaces() -> dict[str, list[str]]:
    """Return `address/length` of each interface, in the kernel's order."""
    found: dict[str, list[str]] = {}
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
            kernel.send(
                HEADER.pack(HEADER.size + BODY.size, GET_ADDRESS, REQUEST_DUMP, 1, 0)
                + BODY.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
            )
            for index, address in _addresses(kernel):
                found.setdefault(socket.if_indextoname(index), []).append(address)
    except (OSError, AttributeError):
        return found
    return found


def _addresses(kernel: socket.socket) -> Iterator[tuple[int, str]]:
    while True:
        data = kernel.recv(RECEIVE_SIZE)
        while len(data) >= HEADER.size:
            size, kind, *_ = HEADER.unpack_from(data)
            if kind == DONE:
                return
            if kind == ERROR:
                raise OSError(-struct.unpack_from("=i", data, HEADER.size)[0], "")
            if kind == NEW_ADDRESS:
                yield _address(data[HEADER.size : size])
            data = data[_aligned(size) :]


def _address(data: bytes) -> tuple[int, str]:
    _, length, _, _, index = BODY.unpack_from(data)
    data = data[BODY.size :]
    attributes: dict[int, bytes] = {}
    while len(data) >= ATTRIBUTE.size:
        size, kind = ATTRIBUTE.unpack_from(data)
        attributes[kind] = data[ATTRIBUTE.size : size]
        data = data[max(_aligned(size), ATTRIBUTE.size) :]
    return index, f"{ipaddress.ip_address(attributes.get(LOCAL) or attributes[ADDRESS])}/{length}"


def _aligned(size: int) -> int:
    return (size + 3) & ~3
