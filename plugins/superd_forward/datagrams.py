"""The datagrams of one source: each source has a socket of its own to a target, which tells the
answers of one from those of another.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from functools import partial
from operator import length_hint

from superd.plugin import DatagramRelay, End, RelayedDatagrams, Unavailable
from superd_forward.connecting import EXHAUSTED, has_run_out
from superd_forward.context import Context
from superd_forward.loops import LOOP, Endpoint, chain_at, forget, remember
from superd_forward.targets import Target, Targets
from superd_forward.timers import Timers

BATCH = 64  # answers per wake-up: the others' turn comes before a flood is over
MOST_WAITING = 64 * 1024  # bytes that wait for the address of a target
LOOK = 0.25  # seconds

# a datagram is lost, by no fault of its target
BLAMELESS = EXHAUSTED | {errno.EADDRNOTAVAIL, errno.EMSGSIZE}


class Datagrams:
    """What all sources of a service share. A source is forgotten `timeout` seconds after its last
    datagram, or the last answer to it, and after so many `replies`, where that is not 0.
    """

    def __init__(self, context: Context, targets: Targets, *, timeout: float, replies: int) -> None:
        self.context = context
        self.targets = targets
        self.timeout = timeout
        self.replies = replies
        self.all: Timers[ForwardedDatagrams] = Timers(
            context.loop, LOOK, lambda relay: relay.look()
        )


class ForwardedDatagrams(DatagramRelay):
    """One source and its target; `sock` is None until that is known."""

    def __init__(self, shared: Datagrams, conn: RelayedDatagrams) -> None:
        self.shared = shared
        self.conn = conn
        self.order = iter(shared.targets.order(conn))
        self.target: Target | None = None
        self.sock: socket.SocketType | None = None
        self.waiting: list[bytes] = []  # for the target's address
        self.last: bytes | None = None  # sent, and not known to have arrived
        self.has_answered = self.is_over = False
        self.due = 0  # answers, where they are counted
        self.moved = 0
        self.active_at = self.started = time.monotonic()
        header = shared.context.header
        self.header = b"" if header is None else header(conn.peer, conn.local)
        self._received = self._sent = 0
        self.endpoint: Endpoint | None = None  # of our socket to the target
        peer = conn.peer
        chain = chain_at((peer.host or peer.path, peer.port, conn.local.port))
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
        self.moved += 1
        self.due += self.shared.replies
        if self.sock is not None:
            self._send(data)
        elif sum(map(len, self.waiting)) + len(data) <= MOST_WAITING:
            self.waiting.append(data)

    def _send(self, data: bytes) -> None:
        assert self.sock is not None
        try:
            self.sock.send(self.header + data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return  # lost, as a datagram may be
        except OSError as error:
            self._refused(error, data)
            return
        self.last = data

    def _refused(self, error: OSError, unsent: bytes | None = None) -> None:
        """Go to the next target with what this one has not taken; where it has answered before, it
        has gone since or is a new one, and all are tried again.
        """
        target = self.target
        assert target is not None
        self.conn.note(f"{target.name}: {error.strerror}")
        if error.errno in BLAMELESS:
            return
        target.failed(error.strerror or str(error))
        if self.has_answered:
            self.has_answered = False
            self.order = iter(self.shared.targets.order(self.conn))
        # udp(7) tells of the one before, unix(7) of the one that is sent
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
        target.entered()
        if target.way is not None:
            self._found(target, (target.host,))
        else:
            self.shared.context.look_up(target.host, partial(self._found, target))

    def _next_target_soon(self) -> None:
        """Not at once, as all of many targets may fail at once."""
        self.shared.context.loop.call_soon(self._next_target)

    def _found(self, target: Target, hosts: tuple[str, ...]) -> None:
        if self.is_over or target is not self.target:
            return  # it was too late, and another is tried
        context = self.shared.context
        bind_to = context.bind_to
        why = "its name has no address"
        for host in hosts:
            if bind_to and host and (":" in host) != (":" in bind_to):
                continue
            way = target.way or target.at(host)
            sock = None
            try:
                sock = context.connect(way)
                context.poller.add(sock.fileno(), self)
            except OSError as error:
                why = error.strerror or str(error)
                if sock is not None:
                    sock.close()
                others = len(hosts) > 1 or length_hint(self.order) > 0
                if has_run_out(error, others=others):
                    self.cut()
                    self.conn.failed(Unavailable(f"cannot connect to {way.name}: {why}"))
                    return
                continue
            self.sock = sock
            port = way.address.port
            self.endpoint = remember(sock, port, self.chain) if way.may_loop else None
            context.title.changed()
            self.conn.reached(way.name, time.monotonic() - self.started)
            waiting, self.waiting = self.waiting, []
            for data in waiting:
                self.take_again(data)
            return
        target.failed(why)
        self.conn.note(f"{target.name}: {why}")
        self._leave_target()
        self._next_target_soon()

    def take_again(self, data: bytes) -> None:
        """Send what has waited, to whichever target it is now."""
        if self.sock is not None:
            self._send(data)
        elif not self.is_over:
            self.waiting.append(data)

    # What the poller calls

    def ready(self, events: int) -> None:
        for _ in range(BATCH):
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
                self._refused(error)
                continue
            if not self.has_answered:
                self.has_answered = True
                assert self.target is not None
                self.target.took()
                self.target.succeeded()
            self.moved += 1
            self._sent += size
            self.conn.send(buffer[:size])
            self.due -= 1
            if not self.due:
                self._over(End.SERVER)
                return
        if self.sock is not None:
            self.shared.context.memory.again(self.sock.fileno(), self)

    def failed(self, error: BaseException) -> None:
        self.conn.failed(error)

    # How it ends

    def look(self) -> None:
        """Forget the source when neither it nor its target has said anything for a while."""
        now = time.monotonic()
        if self.moved:
            self.moved, self.active_at = 0, now
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
            self.target.left()
            self.target = None
        if self.sock is not None:
            if self.endpoint is not None:
                forget(self.endpoint)
            self.shared.context.poller.forget(self.sock.fileno())
            with contextlib.suppress(OSError):
                self.sock.close()
            self.sock = self.last = None
