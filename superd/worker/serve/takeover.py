"""Connections whose raw socket a plugin takes over.

Runs in the worker, on the loop. A client waits while too few descriptors are free for the plugin to
start. Once the plugin has returned, what it has sent is delivered and the socket closed. If it has
started a program for the client, the connection lasts until neither the program nor a process that
the program has started has the socket. Never raises.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import sys
from functools import partial
from typing import Any

from superd.admission.gate import Ticket
from superd.net.addresses import Transport
from superd.net.closing import never_block_on_close, reset_on_close
from superd.net.passing import pass_socket
from superd.net.receive_timeout import NO_TIMEOUT
from superd.observe.connections import End
from superd.observe.records import Record
from superd.plugin.connection import DEFAULT_LINE_LIMIT, Connection
from superd.process.holders import has_open, holder_of, link_of
from superd.worker.runtime.context import Context
from superd.worker.runtime.service import WorkerService
from superd.worker.serve.session import SLOTS, Session

RETRY_INTERVAL = 0.05  # seconds before a connection is retried for which descriptors were missing
# seconds without polling then; longer, so that no other connection is accepted before the retry
ACCEPT_PAUSE = 2 * RETRY_INTERVAL
NEW_PROGRAM_TIME = 1.0  # seconds; far too short for the system to give out all process IDs
BROKEN = select.POLLHUP | select.POLLERR
LINUX = sys.platform == "linux"
TCP_INFO_SIZE = 136  # bytes of struct tcp_info, up to tcpi_bytes_received (tcp(7))

# States of tcp (tcp_states.h) in which the client's FIN was received, or our own acknowledged: the
# kernel counts each as a byte.
FIN_RECEIVED = frozenset((6, 8, 9, 11))  # TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING
FIN_ACKNOWLEDGED = frozenset((5, 6))  # FIN_WAIT2, TIME_WAIT


def bytes_of(sock: socket.socket) -> tuple[int, int] | None:
    """Return the bytes received and sent, as the kernel counts them for tcp on Linux; else None."""
    if sock.family in (socket.AF_INET, socket.AF_INET6) and LINUX:
        with contextlib.suppress(OSError):
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
            sent, received = struct.unpack_from("@QQ", info, TCP_INFO_SIZE - 16)
            state = info[0]
            return received - (state in FIN_RECEIVED), sent - (state in FIN_ACKNOWLEDGED)
    return None


def take_over(
    context: Context,
    service: WorkerService,
    kind: Transport,
    sock: socket.socket,
    sockaddr: Any,
    ticket: Ticket,
    local: str,
) -> None:
    """Let the plugin take over a connection. If too few descriptors are free for it to start, retry
    later, and leave pending connections in the backlog until then.
    """
    try:
        if service.plugin.descriptors:
            _keep_free(context, sock, service.plugin.descriptors)
    except OSError as error:
        text = f"cannot start its plugin, clients wait: {os.strerror(error.errno or 0)}"
        record = Record("warning", text, service=service.name)
        context.flood_gate.report((service.name, error.errno), record)
        if error.errno == errno.EMFILE:
            context.check_descriptors()
        retry = partial(take_over, context, service, kind, sock, sockaddr, ticket, local)
        service.pause(ACCEPT_PAUSE)
        context.hold(RETRY_INTERVAL, retry)
        return
    session = TakeoverSession()
    session.begin(context, service, kind, sockaddr, ticket, local)
    session.start(sock)


def _keep_free(context: Context, sock: socket.socket, number: int) -> None:
    """Reserve so many descriptors until the loop turns, so that no other connection takes them
    before the plugin starts. Raises OSError if they are not free.
    """
    with contextlib.ExitStack() as kept:
        for _ in range(number):
            kept.callback(os.close, os.dup(sock.fileno()))
        os.close(os.dup(sock.fileno()))  # and one now: see `start`
        context.loop.call_soon(kept.pop_all().close)


class TakeoverSession(Session, Connection):
    """A connection that superd only accounts for; the plugin, or a program that it has started,
    reads and writes the socket itself.
    """

    __slots__ = (*SLOTS, "holder", "is_known", "kept", "program", "sock")

    sock: socket.socket | None
    kept: socket.socket | None
    is_known: bool  # whether the kernel counts the bytes
    program: int  # its process ID; 0 if there is none
    holder: int  # the process that had the socket when this was checked last

    def start(self, sock: socket.socket) -> None:
        """Give the plugin the socket, without the SO_RCVTIMEO that it has inherited.

        If the entry has time-outs that depend on traffic, a duplicate is kept for counting it: the
        plugin may close its own and leave the client to another process.
        """
        self.sock, self.kept, self.is_known = sock, None, False
        self.program = self.holder = 0
        entry, takeover = self.worker_service.entry, self.worker_service.takeover
        assert takeover is not None
        try:
            if entry.first_byte_timeout or entry.idle_timeout:
                self.kept = sock.dup()
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, NO_TIMEOUT)
            self.run(takeover(sock, self))
        except BaseException as error:  # noqa: BLE001  takeover() may not take two arguments
            self.contain(error)
            self.leave()

    def given_to(self, program: int) -> None:
        self.program = self.holder = program
        self.context.programs.add(self)
        self._close_kept()
        self._ends = f'{self.ends},"program":{program}'
        if self.worker_service.plugin.runs_programs:
            self.worker_service.records.accepted(self._ends)

    def raw_socket(self) -> socket.socket | None:
        return self.sock

    @property
    def is_lost(self) -> bool:
        return self.sock is None

    def progress(self) -> tuple[int, int]:
        """Ask the kernel; where it does not count, the connection is never idle."""
        self._count()
        return self.byte_counts or (1, int(self.context.loop.time() * 1000))

    @property
    def byte_counts(self) -> tuple[int, int] | None:
        return (self.received, self.sent) if self.is_known else None

    @property
    def _open(self) -> socket.socket | None:
        """The connection's socket, if it is open here."""
        found = (sock for sock in (self.sock, self.kept) if sock is not None and sock.fileno() >= 0)
        return next(found, None)

    def _count(self) -> None:
        """Update the counters from the kernel, if it counts; the socket may be closed here by now.
        The counters keep what they were when the connection ended, or was cut.
        """
        if self.sock is None or self.end not in (None, End.ERROR):
            return
        found = self._open
        counted = None if found is None else bytes_of(found)
        self.is_known = counted is not None
        self.received, self.sent = counted or (0, 0)

    @property
    def is_broken(self) -> bool:
        sock = self._open
        if sock is None:
            return True
        poll = select.poll()
        poll.register(sock, 0)
        return any(events & BROKEN for _, events in poll.poll(0))

    def finish(self) -> None:
        """Close, unless a process that the program has started still has the socket."""
        self._count()
        sock, is_free = self.sock, True
        if self.program and sock is not None and self.end is None:
            try:
                if self._is_held(sock):
                    return  # `check_holder` closes it later
            except OSError:
                is_free = False
        kept, self.sock, self.kept = self.kept, None, None
        if sock is None or sock.fileno() < 0:
            if kept is not None:  # the plugin has closed it, or given it to another process
                self.deliver(kept)
            return
        if kept is not None:
            kept.close()
        if self.program and never_block_on_close(sock):
            sock.close()
        elif is_free:
            self.linger(sock)
        else:
            self.deliver(sock)

    def check_holder(self) -> None:
        """Close the socket once no other process has it. Called from time to time."""
        sock = self.sock
        if sock is None:
            return
        with contextlib.suppress(OSError):  # if it is unknown, the program has it until its end
            if self._is_held(sock):
                return
            if self.task is None:
                self.finish()
                if self.is_lost:
                    self.leave()
            else:  # the program has closed it and does something else; that keeps the slot
                self._count()
                self.sock = None
                self.context.lingering.finish(sock)

    def _is_held(self, sock: socket.socket) -> bool:
        """Return whether another process has the socket. Raises OSError if that is unknown."""
        link = link_of(sock.fileno())
        if self.task is not None and has_open(self.program, link, self.program):
            return True
        if self.holder != self.program and has_open(self.holder, link, self.program):
            return True
        others = {one.program for one in self.context.programs if one.task is not None}
        is_new = self.context.loop.time() - self.started < NEW_PROGRAM_TIME
        self.holder = holder_of(link, self.program, others, is_new=is_new) or self.program
        return self.holder != self.program

    def leave(self) -> None:
        self.context.programs.discard(self)
        service, is_open = self.worker_service, self.number in self.context.connections
        if is_open and service.plugin.runs_programs and not self.program:  # it was not started
            service.records.accepted(self.ends)
        super().leave()

    def expire(self, end: End) -> None:
        """Shut the socket down; close it after the plugin, which may be using it, has returned. A
        program is sent SIGTERM first, and may still answer.
        """
        self._count()
        self.end = self.end or end
        is_running = self.program and self.task is not None
        if not is_running and (sock := self._open) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if self.task is not None:
            self.task.cancel()
        else:  # only processes that its program has started have the socket
            self.finish()
            self.leave()

    def abort(self) -> None:
        self._count()
        if (sock := self._open) is not None:
            reset_on_close(sock)
            sock.close()
        self.sock = None
        self._close_kept()

    def pass_on(self, entrance: socket.socket) -> bool:
        """Pass the connection to another service, which counts it against its own limits."""
        assert self.sock is not None
        self.release_slots()
        try:
            pass_socket(entrance, self.sock)
        except OSError:
            return False
        self._close_kept()
        self.sock.close()
        return True

    def _close_kept(self) -> None:
        if self.kept is not None:
            self.kept.close()
            self.kept = None

    def close(self) -> None:
        self.finish()

    async def read(self, limit: int = 65536) -> bytes:
        raise RuntimeError(_USE_SOCKET)

    async def readline(self, limit: int = DEFAULT_LINE_LIMIT) -> bytes:
        raise RuntimeError(_USE_SOCKET)

    async def send(self, data: bytes) -> None:
        raise RuntimeError(_USE_SOCKET)

    def send_eof(self) -> None:
        raise RuntimeError(_USE_SOCKET)


_USE_SOCKET = "the plugin has taken over the socket; it reads and writes there"
