"""Forwarded datagrams: each source has a socket of its own to a target, so that answers find their
source. Runs in a worker, on the loop.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from functools import partial
from operator import length_hint

from superd.plugin import DatagramRelay, End, RelayedDatagrams, Unavailable
from superd_forward.connecting import NO_ADDRESS, SHORTAGE_ERRNOS, is_shortage
from superd_forward.context import Context
from superd_forward.loops import LOOP, Endpoint, chain_from, register, unregister
from superd_forward.targets import Target, Targets, TargetsByPort
from superd_forward.timers import Timers

MAX_ANSWERS_PER_TURN = 64  # of one source, before other connections have their turn
MAX_WAITING_BYTES = 64 * 1024  # until the address of a target is known
IDLE_CHECK_INTERVAL = 0.25  # seconds

# errors that lose a datagram, and are not of its target
LOCAL_ERRNOS = SHORTAGE_ERRNOS | {errno.EADDRNOTAVAIL, errno.EMSGSIZE}


class Datagrams:
    """The state that all sources of a service share. A source is dropped `timeout` seconds after
    its last datagram or answer, and after `replies` answers to each datagram, unless that is 0.
    """

    def __init__(
        self, context: Context, targets: Targets | TargetsByPort, *, timeout: float, replies: int
    ) -> None:
        self.context = context
        self.targets = targets
        self.timeout = timeout
        self.replies = replies
        self.all: Timers[ForwardedDatagrams] = Timers(
            context.loop, IDLE_CHECK_INTERVAL, lambda relay: relay.check_idle()
        )


class ForwardedDatagrams(DatagramRelay):
    """One source and its target; `sock` is None until it is connected to an address."""

    def __init__(self, shared: Datagrams, conn: RelayedDatagrams) -> None:
        self.shared = shared
        self.conn = conn
        self.order = iter(shared.targets.order(conn))
        self.target: Target | None = None
        self.sock: socket.SocketType | None = None
        self.waiting: list[bytes] = []  # until a target is connected
        self.last: bytes | None = None  # sent, perhaps refused
        self.has_answered = self.is_over = False
        self.answers_due = 0  # if `replies` is not 0
        self.datagrams_since_check = 0
        self.active_at = self.started = time.monotonic()
        header = shared.context.header
        self.header = b"" if header is None else header(conn.peer, conn.local)
        self._received = self._sent = 0
        self.endpoint: Endpoint | None = None  # of the socket to the target
        peer = conn.peer
        chain = chain_from((peer.host or peer.path, peer.port, conn.local.port))
        self.chain = (*chain, shared)
        shared.all.add(self)
        shared.context.connections[self] = None
        if shared in chain:
            conn.note(LOOP)
            self._over(End.UNREACHABLE)
        else:
            self._next_target()

    def __str__(self) -> str:
        return f"{self.conn.peer.endpoint} > {self.target.name if self.target else '...'}"

    @property
    def received(self) -> int:
        return self._received

    @property
    def sent(self) -> int:
        return self._sent

    def take(self, data: bytes) -> None:
        self._received += len(data)
        self.datagrams_since_check += 1
        self.answers_due += self.shared.replies
        if self.sock is not None:
            self._send(data)
        elif sum(map(len, self.waiting)) + len(data) <= MAX_WAITING_BYTES:
            self.waiting.append(data)

    def _send(self, data: bytes) -> None:
        assert self.sock is not None
        try:
            self.sock.send(self.header + data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return  # dropped, as datagrams may be
        except OSError as error:
            self._send_failed(error, data)
            return
        self.last = data

    def _send_failed(self, error: OSError, unsent: bytes | None = None) -> None:
        """Send the datagrams that this target has refused to the next target. If it had answered
        before, it was restarted or stopped since, so all targets are tried again.
        """
        target = self.target
        assert target is not None
        self.conn.note(f"{target.name}: {error.strerror}")
        if error.errno in LOCAL_ERRNOS:
            return
        target.failed(error.strerror or str(error))
        if self.has_answered:
            self.has_answered = False
            self.order = iter(self.shared.targets.order(self.conn))
        # udp(7) reports the previous datagram, unix(7) the one that is being sent
        last = None if target.destination.path else self.last
        self.waiting += [data for data in (last, unsent) if data is not None]
        self._leave_target()
        self._next_target_soon()

    def _next_target(self) -> None:
        if self.is_over:
            return
        target = self.target = next(self.order, None)
        if target is None:
            self._over(End.UNREACHABLE)
            return
        target.client_added()
        if target.address is not None:
            self._found(target, (target.host,))
        else:
            self.shared.context.look_up(target.host, partial(self._found, target))

    def _next_target_soon(self) -> None:
        # in the next turn of the loop: a recursion over many failing targets could be too deep
        self.shared.context.loop.call_soon(self._next_target)

    def _found(self, target: Target, hosts: tuple[str, ...]) -> None:
        if self.is_over or target is not self.target:
            return  # the look-up took too long, and another target is tried
        context = self.shared.context
        bind_to = context.bind_to
        why = NO_ADDRESS
        for host in hosts:
            if bind_to and host and (":" in host) != (":" in bind_to):
                continue
            address = target.address or target.address_at(host)
            sock = None
            try:
                sock = context.connect(address)
                context.poller.add(sock.fileno(), self)
            except OSError as error:
                why = error.strerror or str(error)
                if sock is not None:
                    sock.close()
                has_alternative = len(hosts) > 1 or length_hint(self.order) > 0
                if is_shortage(error, has_alternative=has_alternative):
                    self.cut()
                    self.conn.failed(Unavailable(f"cannot connect to {address.name}: {why}"))
                    return
                continue
            self.sock = sock
            if address.may_loop:
                self.endpoint = register(sock, address.port, self.chain)
            context.title.changed()
            self.conn.reached(address.name, time.monotonic() - self.started)
            waiting, self.waiting = self.waiting, []
            for data in waiting:
                self.send_waiting(data)
            return
        target.failed(why)
        self.conn.note(f"{target.name}: {why}")
        self._leave_target()
        self._next_target_soon()

    def send_waiting(self, data: bytes) -> None:
        """Send a datagram that has waited to the present target, which may have changed."""
        if self.sock is not None:
            self._send(data)
        elif not self.is_over:
            self.waiting.append(data)

    # What the poller calls

    def ready(self, events: int) -> None:
        for _ in range(MAX_ANSWERS_PER_TURN):
            sock, buffer = self.sock, self.shared.context.memory.buffer
            if sock is None:
                return
            if buffer is None:
                break
            try:
                size = sock.recv_into(buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:  # about an earlier datagram
                self._send_failed(error)
                continue
            if not self.has_answered:
                self.has_answered = True
                assert self.target is not None
                self.target.accepted()
                self.target.succeeded()
            self.datagrams_since_check += 1
            self._sent += size
            self.conn.send(buffer[:size])
            self.answers_due -= 1
            if not self.answers_due:
                self._over(End.SERVER)
                return
        if self.sock is not None:
            self.shared.context.memory.read_again(self.sock.fileno(), self)

    def failed(self, error: BaseException) -> None:
        self.conn.failed(error)

    # How it ends

    def check_idle(self) -> None:
        """Drop the source if neither it nor its target has sent anything for `timeout` seconds."""
        now = time.monotonic()
        if self.datagrams_since_check:
            self.datagrams_since_check, self.active_at = 0, now
        elif now - self.active_at >= self.shared.timeout:
            self._over(End.IDLE)

    def cut(self) -> None:
        self.is_over = True
        self.shared.all.discard(self)
        self.shared.context.connections.pop(self, None)
        self.shared.context.title.changed()
        self._leave_target()

    def _over(self, end: End) -> None:
        if not self.is_over:
            self.cut()
            self.conn.ended(end)

    def _leave_target(self) -> None:
        if self.target is not None:
            self.target.client_removed()
            self.target = None
        if self.sock is not None:
            if self.endpoint is not None:
                unregister(self.endpoint)
                self.endpoint = None
            self.shared.context.poller.forget(self.sock.fileno())
            with contextlib.suppress(OSError):
                self.sock.close()
            self.sock = self.last = None
