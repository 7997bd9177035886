"""A name server whose answers the test decides, in the test's network namespace (RFC 1035).

Runs in a thread of the test's process. Answers PTR, A and AAAA questions. It can also be silent,
fail every question, or send hostile answers.
"""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.support.namespaces import Namespace

A, PTR, AAAA = 1, 12, 28
SERVFAIL, NXDOMAIN = 2, 3
FILES = {
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nservices: files\nhosts: dns\n",
    "hosts": "",
}


class NameServer:
    """`names` maps addresses to PTR answers, `addresses` maps names to one or more addresses.

    `hostile` gets the question and the true answer, both raw, and returns the answer to send.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.names: dict[str, bytes] = {}
        self.addresses: dict[bytes, str] = {}
        self.ttl = 60
        self.hostile: Callable[[bytes, bytes], bytes] | None = None
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
                answer = self.answer(data)
                if self.hostile is not None:
                    answer = self.hostile(data, answer)
                self.socket.sendto(answer, peer)

    def answer(self, query: bytes) -> bytes:
        labels, end = [], 12
        while length := query[end]:
            labels.append(query[end + 1 : end + 1 + length])
            end += 1 + length
        kind = int.from_bytes(query[end + 1 : end + 3], "big")
        question = query[12 : end + 5]
        found = None if self.fails else self._data(b".".join(labels).lower(), kind)
        code = SERVFAIL if self.fails else NXDOMAIN if found is None else 0
        records = b"".join(record(kind, self.ttl, data) for data in found or [])
        return header(query, code, len(found or [])) + question + records

    def _data(self, name: bytes, kind: int) -> list[bytes] | None:
        """Return the data of a name's records; None where there is no such name."""
        if kind == PTR:
            for address, hostname in self.names.items():
                if ipaddress.ip_address(address).reverse_pointer.encode() == name:
                    return [_encoded(hostname)]
        if name not in self.addresses:
            return None
        found = map(ipaddress.ip_address, self.addresses[name].split())
        return [one.packed for one in found if kind == (AAAA if one.version == 6 else A)]


def header(query: bytes, code: int, answers: int) -> bytes:
    return query[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, answers, 0, 0)


def record(kind: int, ttl: int, data: bytes) -> bytes:
    """Return a record of the name that was asked for."""
    return b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def _encoded(name: bytes) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in name.split(b".")) + b"\0"


@contextlib.contextmanager
def name_server(space: Namespace, files: Mapping[str, str] = FILES) -> Iterator[NameServer]:
    """Serve names to programs that `ip netns exec` runs in a namespace; `files` go to its /etc."""
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
