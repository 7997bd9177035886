"""A minimal forwarder in Python, as a baseline: python plain_forwarder.py PORT TO_PORT

It makes the same system calls as superd, and does nothing else: no limits, no timeouts, no
records, no half-close, and data that does not fit into a send buffer is lost. The difference to
nginx is the cost of Python, the difference to superd is the cost of superd's features.
"""

from __future__ import annotations

import gc
import select
import socket
import sys

from superd.net.closing import reset_on_close

HOST = "127.0.0.1"
EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
NONBLOCKING = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC

buffer = memoryview(bytearray(64 * 1024))


class Side:
    __slots__ = ("is_connected", "other", "receive", "send", "sock")

    other: Side

    def __init__(self, sock: socket.SocketType, *, is_connected: bool) -> None:
        self.sock = sock
        self.receive = sock.recv_into
        self.send = sock.send
        self.is_connected = is_connected

    def pull(self) -> None:
        try:
            size = self.receive(buffer, 0, SEND_FLAGS)
            if size:
                self.other.send(buffer[:size], SEND_FLAGS)
                return
        except BlockingIOError:
            return
        except OSError:
            reset_on_close(self.other.sock)
        for side in (self, self.other):
            sides.pop(side.sock.fileno(), None)
            side.sock.close()


def accept() -> None:
    while True:
        try:
            descriptor, _ = listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        client = Side(
            socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor), is_connected=True
        )
        target = Side(socket.SocketType(socket.AF_INET, NONBLOCKING, 0), is_connected=False)
        client.other, target.other = target, client
        target.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        target.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        target.sock.connect_ex((HOST, int(sys.argv[2])))
        for side in (client, target):
            sides[side.sock.fileno()] = side
            epoll.register(side.sock.fileno(), EVENTS)


sides: dict[int, Side] = {}
listener = socket.create_server((HOST, int(sys.argv[1])), backlog=4096)
listener.setblocking(False)
listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
epoll = select.epoll()
epoll.register(listener.fileno(), select.EPOLLIN)
gc.disable()  # every connection is a reference cycle, but this never runs for long

while True:
    for number, events in epoll.poll(-1, 256):
        if number == listener.fileno():
            accept()
        elif (side := sides.get(number)) is None:
            continue
        elif side.is_connected:
            if side.other.is_connected:
                side.pull()
        elif events & select.EPOLLOUT:
            side.is_connected = True
            side.other.pull()
