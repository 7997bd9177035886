"""A name server that says what a test wants, in a network namespace of the test's own (RFC 1035).

Runs in the test's process, in a thread. Answers PTR, A and AAAA questions, and says nothing at all
where it is silent.
"""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.namespaces import Namespace

A, PTR, AAAA = 1, 12, 28
SERVFAIL, NXDOMAIN = 2, 3
FILES = {
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nservices: files\nhosts: dns\n",
    "hosts": "",
}


class NameServer:
    """`names` maps addresses to what PTR says, `addresses` names to their addresses."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.names: dict[str, bytes] = {}
        self.addresses: dict[bytes, str] = {}
        self.is_silent = False
        self.fails = False
        self.questions = 0

    def serve(self) -> None:
        """Answer until the socket is shut."""
        while True:
            data, peer = self.socket.recvfrom(4096)
            if data == b"end":
                return
            self.questions += 1
            if not self.is_silent:
                self.socket.sendto(self.answer(data), peer)

    def answer(self, query: bytes) -> bytes:
        labels, end = [], 12
        while length := query[end]:
            labels.append(query[end + 1 : end + 1 + length])
            end += 1 + length
        kind = int.from_bytes(query[end + 1 : end + 3], "big")
        question = query[12 : end + 5]
        data = None if self.fails else self._data(b".".join(labels).lower(), kind)
        code = SERVFAIL if self.fails else 0 if data is not None else NXDOMAIN
        header = query[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, data is not None, 0, 0)
        record = b""
        if data is not None:
            record = b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(data)) + data
        return header + question + record

    def _data(self, name: bytes, kind: int) -> bytes | None:
        if kind == PTR:
            for address, told in self.names.items():
                if ipaddress.ip_address(address).reverse_pointer.encode() == name:
                    return _encoded(told)
        address = self.addresses.get(name, "")
        if address and kind == (AAAA if ":" in address else A):
            return ipaddress.ip_address(address).packed
        return None


def _encoded(name: bytes) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in name.split(b".")) + b"\0"


@contextlib.contextmanager
def name_server(space: Namespace, files: Mapping[str, str] = FILES) -> Iterator[NameServer]:
    """Serve names to what runs in a namespace by `ip netns exec`, which has files of its own."""
    directory = Path("/etc/netns", space.name)
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    with space.inside():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.bind(("127.0.0.1", 53))
        server = NameServer(sock)
        thread = threading.Thread(target=server.serve)
        thread.start()
        yield server
        with space.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"end", ("127.0.0.1", 53))
        thread.join()
    finally:
        sock.close()
        shutil.rmtree(directory)
