"""Services that answer a connection at once and close: `respond` over tcp and unix.

Runs in the worker, on the loop. Makes no transport: one send, one shutdown, and then the socket
lingers until the client has closed too, since input that is unread at close would make the kernel
send a reset and lose the answer. So long it has its place in all limits. Never raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from superd.admission.gate import NO_SOURCE, Ticket
from superd.admission.scoreboard import Count, duration_column
from superd.net.addresses import Address, Transport
from superd.net.closing import reset_on_close, undelivered
from superd.observe.connections import End, ends_of
from superd.plugin.service import Request
from superd.worker.runtime.scratch import SCRATCH
from superd.worker.runtime.service import Serving
from superd.worker.serve.session import (
    connection_id,
    endpoint_text,
    report_failure,
)
from superd.worker.serve.stream import LINGER, PATIENCE, ProtocolSession, advance

if TYPE_CHECKING:
    from superd.worker.engine import Engine

UNLIMITED = 1 << 62
# tcp(7): what is sent waits for the end of the stream, to go out in one segment with it
WITH_THE_END = socket.MSG_DONTWAIT | getattr(socket, "MSG_MORE", 0)
FIRST_LOOK = 0.001  # seconds until sockets that linger are looked at for the first time
LOOK = 0.1  # seconds between looks at whose time is over
MOST_READY = 64  # looked at in one turn of the loop

_BYTES_OUT = int(Count.BYTES_OUT)
_SHORTEST = duration_column(0.0)


class Answerer:
    """Answers the connections of one service."""

    def __init__(self, engine: Engine, serving: Serving, kind: Transport) -> None:
        assert serving.respond is not None
        self.respond = serving.respond
        self.engine = engine
        self.serving = serving
        self.kind = kind

    def dispatch(self, sock: socket.SocketType, sockaddr: Any, ticket: Ticket, local: str) -> None:
        """Answer; a session is made only where the answer does not fit into the socket at once."""
        serving = self.serving
        try:
            answer = self.respond(Request(b"", UNLIMITED, self.kind, sockaddr, sock))
            if not isinstance(answer, bytes):
                raise TypeError(f"respond() returned {type(answer).__name__}, not bytes")
            size = len(answer)
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            self._fail(sock, sockaddr, ticket, local, error)
            return
        try:
            sent = sock.send(answer, WITH_THE_END) if size else 0
            if sent < size:
                serving.counts[_BYTES_OUT] += sent
                self._send_rest(sock, sockaddr, answer[sent:], ticket, local)
                return
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client has gone
            self._book(sockaddr, local, 0, End.RESET)
            _close(sock, serving, ticket)
        else:
            self._book(sockaddr, local, size, End.SERVER)
            self.engine.lingering.add(sock, serving, ticket)

    def _book(self, sockaddr: Any, local: str, sent: int, end: End) -> str:
        """Count and record a connection that is over; return its id."""
        serving = self.serving
        serving.counts[_BYTES_OUT] += sent
        serving.counts[_SHORTEST] += 1
        number = connection_id(self.engine, self.engine.next_number())
        ends = ends_of(number, endpoint_text(self.kind, sockaddr), local)
        serving.records.answered(ends, sent, end.value)
        return number

    def _fail(
        self,
        sock: socket.SocketType,
        sockaddr: Any,
        ticket: Ticket,
        local: str,
        error: BaseException,
    ) -> None:
        number = self._book(sockaddr, local, 0, End.ERROR)
        peer = Address.of_socket(self.kind, sockaddr)
        report_failure(self.engine, self.serving, error, number, peer)
        reset_on_close(sock)
        _close(sock, self.serving, ticket)

    def _send_rest(
        self, sock: socket.SocketType, sockaddr: Any, rest: bytes, ticket: Ticket, local: str
    ) -> None:
        whole = socket.socket(fileno=sock.detach())
        session = ProtocolSession()
        session.begin(self.engine, self.serving, self.kind, sockaddr, ticket, local)
        advance(session.attach(whole, Remainder(rest)))


class Remainder(asyncio.Protocol):
    """Sends what was left of an answer, and closes."""

    def __init__(self, rest: bytes) -> None:
        self.rest = rest

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self.rest)
        transport.close()


class Late(NamedTuple):
    """A socket whose client has not closed yet, and the place that it has until then."""

    deadline: float  # by the loop's time
    end: float  # when it is closed at the latest
    sock: socket.SocketType
    serving: Serving | None
    ticket: Ticket


class Lingering:
    """Sockets that have been answered and wait for the client to close, a second at most; longer
    only for a client that still takes what the kernel has for it. Each has a client's place in the
    limits of its service, unless that client was refused, and gives it back when it is closed.

    Most clients have closed a moment later, when all that are new are looked at together: that
    costs less than to have the loop wake up for each. It does so for those who linger longer, and
    where anything is limited, as the next client may be refused for want of a place.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.epoll = select.epoll()
        self._new: list[tuple[socket.SocketType, Serving | None, Ticket]] = []
        self._late: dict[int, Late] = {}  # by descriptor, the next whose time is over first
        self._looks = False

    def __len__(self) -> int:
        return len(self._new) + len(self._late)

    def finish(
        self, sock: socket.SocketType, serving: Serving | None = None, ticket: Ticket = NO_SOURCE
    ) -> None:
        """Say that nothing more is sent, and linger."""
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client has gone
            _close(sock, serving, ticket)
        else:
            self.add(sock, serving, ticket)

    def add(self, sock: socket.SocketType, serving: Serving | None, ticket: Ticket) -> None:
        """Linger at a socket that sends no more; no service is that of a client without a place."""
        if serving is not None and serving.gate.scopes:
            self._wait_for(sock, serving, ticket)
            self._look_at_ready()  # the next may be accepted before the loop does
            return
        if not self._new:
            self.engine.loop.call_later(FIRST_LOOK, self._look_at_new)
        self._new.append((sock, serving, ticket))

    def make_room(self) -> None:
        """Close half of the sockets, those of who came first: descriptors are wanted elsewhere."""
        by_age = sorted(self._late, key=lambda descriptor: self._late[descriptor].end)
        for descriptor in by_age[: (len(by_age) + 1) // 2]:
            self._let_go(descriptor)

    def _look_at_new(self) -> None:
        new, self._new = self._new, []
        for sock, serving, ticket in new:
            if _has_closed(sock):
                _close(sock, serving, ticket)
            else:
                self._wait_for(sock, serving, ticket)
        self.engine.end_if_drained()

    def _wait_for(self, sock: socket.SocketType, serving: Serving | None, ticket: Ticket) -> None:
        loop = self.engine.loop
        if not self._looks:
            self._looks = True
            loop.add_reader(self.epoll.fileno(), self._readable)
            loop.call_later(LOOK, self._look_at_times)
        descriptor, now = sock.fileno(), loop.time()
        self._late[descriptor] = Late(now + LINGER, now + PATIENCE, sock, serving, ticket)
        with contextlib.suppress(OSError):  # where there is no memory, its time will be over
            self.epoll.register(descriptor, select.EPOLLIN)

    def _readable(self) -> None:
        self._look_at_ready()
        self.engine.end_if_drained()

    def _look_at_ready(self) -> None:
        for descriptor, _ in self.epoll.poll(0, MOST_READY):
            if _has_closed(self._late[descriptor].sock):
                self._let_go(descriptor)

    def _look_at_times(self) -> None:
        late, now = self._late, self.engine.loop.time()
        while late:
            descriptor, first = next(iter(late.items()))
            if first.deadline > now:
                break
            if first.end > now and undelivered(first.sock):
                del late[descriptor]
                late[descriptor] = first._replace(deadline=now + LINGER)
            else:
                self._let_go(descriptor)
        if late:
            self.engine.loop.call_later(LOOK, self._look_at_times)
        else:
            self._looks = False
            self.engine.loop.remove_reader(self.epoll.fileno())
            self.engine.end_if_drained()

    def _let_go(self, descriptor: int) -> None:
        late = self._late.pop(descriptor)
        with contextlib.suppress(OSError):
            self.epoll.unregister(descriptor)  # closing does not do it where a program has it, too
        _close(late.sock, late.serving, late.ticket)


def _close(sock: socket.SocketType, serving: Serving | None, ticket: Ticket) -> None:
    """Close a client's socket, and give back the place that it has in limits, if it has one."""
    sock.close()
    if serving is not None:
        serving.gate.leave(ticket)
        if serving.waiting:
            serving.resume()


def _has_closed(sock: socket.SocketType) -> bool:
    """Read away what the client still sends; tell whether it has closed."""
    try:
        return sock.recv_into(SCRATCH, 0, socket.MSG_DONTWAIT) == 0
    except BlockingIOError:
        return False
    except OSError:
        return True
