"""Services that answer a connection at once and close: `respond` over tcp and unix.

Runs in the worker, on the loop. Makes no transport: one send, one shutdown, and then the socket
lingers until the client has closed too, since input that is unread at close would make the kernel
send a reset and lose the answer. Never raises.
"""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING, Any

from superd.net.addresses import Transport
from superd.plugin.service import Request
from superd.worker.protocols import LINGER
from superd.worker.serving import Serving
from superd.worker.session import SLOTS, Session, reset_on_close

if TYPE_CHECKING:
    from superd.worker.engine import Engine

UNLIMITED = 1 << 62
BATCH = 256
READ_AWAY = 65536


class AnswerSession(Session):
    """A connection that gets one answer."""

    __slots__ = (*SLOTS, "sock")

    sock: socket.socket | None

    def answer(self, sock: socket.socket, lingering: Lingering) -> None:
        """Send the answer; what does not fit into the socket at once is sent by a coroutine."""
        self.sock = sock
        respond = self.serving.respond
        assert respond is not None
        try:
            data = respond(Request(b"", UNLIMITED, self.transport_kind, self.sockaddr, sock))
            left = data[sock.send(data) :] if data else data
            self.sent = len(data)
            if left:
                self.run(self.engine.loop.sock_sendall(sock, left))
                return
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.expire()  # the client has gone
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            self.contain(error)
        else:
            lingering.add(self, sock)

    def raw_socket(self) -> socket.socket | None:
        return self.sock

    @property
    def is_lost(self) -> bool:
        return self.sock is None

    def finish(self) -> None:
        if self.sock is not None:
            self.sock.shutdown(socket.SHUT_WR)
            self.engine.lingering.add(self, self.sock)

    def expire(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        if self.task is not None:
            self.task.cancel()
        else:
            self.leave()

    def abort(self) -> None:
        if self.sock is not None:
            reset_on_close(self.sock)
            self.expire()


class Lingering:
    """Sockets that have been answered and wait for the client to close, a second at most.

    An epoll instance of their own stands in the loop as a single reader, so that entering and
    leaving costs one system call each.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.epoll = select.epoll()
        self.waiting: dict[int, tuple[float, AnswerSession]] = {}  # by descriptor, oldest first
        self.timed = False
        engine.loop.add_reader(self.epoll.fileno(), self._readable)

    def add(self, session: AnswerSession, sock: socket.socket) -> None:
        number = sock.fileno()
        now = self.engine.loop.time()
        self.waiting[number] = (now + LINGER, session)
        self.epoll.register(number, select.EPOLLIN)
        if not self.timed:
            self.timed = True
            self.engine.loop.call_later(LINGER, self._expire)

    def _readable(self) -> None:
        for number, _ in self.epoll.poll(0, BATCH):
            session = self.waiting[number][1]
            try:
                unread = session.sock.recv(READ_AWAY) if session.sock is not None else b""
            except BlockingIOError:
                continue
            except OSError:
                unread = b""
            session.received += len(unread)
            if not unread:
                self._close(number, session)

    def _close(self, number: int, session: AnswerSession) -> None:
        del self.waiting[number]
        session.expire()  # closing the socket takes it out of the epoll too

    def _expire(self) -> None:
        now = self.engine.loop.time()
        late = []
        for number, (deadline, session) in self.waiting.items():
            if deadline > now:
                break
            late.append((number, session))
        for number, session in late:
            self._close(number, session)
        self.timed = bool(self.waiting)
        if self.timed:
            first = next(iter(self.waiting.values()))[0]
            self.engine.loop.call_later(first - now, self._expire)


def answering(engine: Engine, serving: Serving, kind: Transport) -> Any:
    """Return the dispatcher for a service that responds."""
    lingering = engine.lingering

    def dispatch(sock: socket.socket, sockaddr: Any) -> None:
        session = AnswerSession()
        session.begin(engine, serving, kind, sockaddr)
        session.answer(sock, lingering)

    return dispatch
