"""Datagrams: udp and unixgram. Reads a bounded number per wake-up, answers from where it was asked.

Runs in the worker, on the loop. Never answers what the reflection guard refuses, nor with more
bytes than the request had unless the entry says so. What a plugin raises is reported and costs
that datagram only. Never raises.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from superd.admission.reflection import ReflectionGuard, is_single_host
from superd.admission.refusals import Refusal
from superd.admission.rules import NOBODY_KNOWN
from superd.admission.scoreboard import Count, refusal_column
from superd.net import pktinfo
from superd.net.addresses import Address
from superd.net.pktinfo import LocalAddress, local_address
from superd.observe.connections import safe
from superd.observe.records import Record
from superd.plugin.service import Request
from superd.worker.runtime.accounting import endpoint_text
from superd.worker.runtime.context import Context
from superd.worker.runtime.scratch import LARGEST, SCRATCH
from superd.worker.runtime.service import WorkerService
from superd.worker.serve.session import report_failure

BATCH = 64  # datagrams per wake-up: the others' turn comes before a flood is over
PAUSE = 0.1  # seconds, after an error that is not expected to pass at once
LAST_BATCHES = 64  # more than a socket's buffer holds
LARGEST_ANSWER = 65507
DESTINATIONS = 1024  # addresses of ours that are remembered

# A worker that shares the socket may have made it blocking. With MSG_TRUNC the size is told of a
# datagram that did not fit.
READING = socket.MSG_DONTWAIT | socket.MSG_TRUNC

# recv(2): these are about an earlier answer and pass with the telling
TOLD = frozenset((errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EINTR))

# as plain numbers: they are used for each datagram
_DATAGRAMS = int(Count.DATAGRAMS)
_ANSWERS = int(Count.ANSWERS)
_ERRORS = int(Count.ERRORS)
_BYTES_IN = int(Count.BYTES_IN)
_BYTES_OUT = int(Count.BYTES_OUT)


class DatagramListener(ABC):
    """Reads from one bound socket, and sends what is answered from where it was asked."""

    def __init__(
        self,
        context: Context,
        service: WorkerService,
        address: Address,
        sock: socket.socket,
        guard: ReflectionGuard,
    ) -> None:
        self.context = context
        self.service = service
        self.address = address
        self.sock = sock
        self.transport = address.transport
        self.is_unix = address.transport.is_unix
        self.asks_destination = address.is_wildcard and not self.is_unix
        self.stopped = False
        self.bound = LocalAddress(address, self.is_unix or is_single_host(address.host))
        self.destination = lru_cache(DESTINATIONS)(partial(local_address, address))
        self.guard = guard if service.entry.reflection_guard else None
        self.set_up()

    @abstractmethod
    def set_up(self) -> None:
        """Make what `serve` needs."""

    def start(self) -> None:
        """Poll the socket."""
        if not self.stopped:
            self.context.loop.add_reader(self.sock, self.receive)

    def stop(self) -> None:
        """Take what has come, then poll no more and let go of the socket."""
        self.stopped = True
        self.context.loop.remove_reader(self.sock)
        for _ in range(LAST_BATCHES):
            if not self.receive():
                break
        self.let_go()

    def let_go(self) -> None:
        """Close the socket here."""
        self.sock.close()

    def receive(self) -> bool:
        """Take datagrams until none waits, but no more than BATCH; tell whether more may wait."""
        taken = answered = bytes_in = bytes_out = 0
        if self.context.heartbeat.wants_beat:
            self.context.heartbeat.quicken()
        for _ in range(BATCH):
            try:
                if self.asks_destination:
                    size, ancillary, _, peer = self.sock.recvmsg_into(
                        (SCRATCH,), pktinfo.ANCILLARY_BYTES, READING
                    )
                    asked = self.destination(tuple(ancillary))
                else:
                    size, peer = self.sock.recvfrom_into(SCRATCH, 0, READING)
                    asked = self.bound
            except BlockingIOError:
                break
            except OSError as error:
                self._report_error(error)
                if error.errno in TOLD:
                    continue
                self._pause()
                break
            taken += 1
            bytes_in += size
            sent = self.serve(size, peer, asked)
            if sent is not None:
                answered += 1
                bytes_out += sent
        self.service.counts[_DATAGRAMS] += taken
        self.count(bytes_in, answered, bytes_out)
        return taken == BATCH

    @abstractmethod
    def serve(self, size: int, peer: Any, asked: LocalAddress) -> int | None:
        """Go on with what has been read into SCRATCH; return the size of an answer, if any."""

    def count(self, bytes_in: int, answered: int, bytes_out: int) -> None:
        """Add to the counters what a batch of datagrams came to."""
        counts = self.service.counts
        counts[_BYTES_IN] += bytes_in
        counts[_ANSWERS] += answered
        counts[_BYTES_OUT] += bytes_out

    def guarded(self, size: int, peer: Any, asked: LocalAddress) -> Refusal | None:
        """Return why nobody at all may answer a datagram."""
        if self.guard is not None:
            if not self.is_unix:
                return self.guard.refusal(peer[0], peer[1], asked.is_unicast)
            if (refusal := self.guard.unix_refusal(peer)) is not None:
                return refusal
        return Refusal.TOO_LONG if size > LARGEST else None

    def _pause(self) -> None:
        """Leave the socket alone for a while: polling would only spin."""
        self.context.check_listeners()
        self.context.loop.remove_reader(self.sock)
        self.context.loop.call_later(PAUSE, self.start)

    def send(self, answer: bytes | memoryview, peer: Any, asked: LocalAddress) -> int | None:
        """Send a datagram from where it was asked for; return its size, None if it is lost."""
        try:
            if asked.control:
                return self.sock.sendmsg((answer,), asked.control, socket.MSG_DONTWAIT, peer)
            return self.sock.sendto(answer, socket.MSG_DONTWAIT, peer)
        except OSError as error:
            self._not_sent(error, peer)
            return None

    def _not_sent(self, error: OSError, peer: Any) -> None:
        if error.errno == errno.EPIPE and not self.is_unix:
            # Somebody shut the socket down for sending. The master sees only that for receiving.
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RD)
        self.refuse(Refusal.SEND, peer, f" ({os.strerror(error.errno or 0)})")

    def turn_away(self, refusal: Refusal, peer: Any, asked: LocalAddress) -> None:
        self.service.counts[refusal_column(refusal)] += 1
        where = endpoint_text(self.transport, peer)
        self.service.records.refused(where, safe(str(asked.address)), refusal.value)

    def refuse(self, refusal: Refusal, peer: Any, why: str = "") -> None:
        self.service.counts[refusal_column(refusal)] += 1
        where = Address.from_sockaddr(self.transport, peer).endpoint
        message = f"datagram not answered: {refusal.value}{why}"
        record = Record("info", message, service=self.service.name, peer=where)
        self.context.flood_gate.report((self.service.name, refusal), record)

    def _report_error(self, error: OSError) -> None:
        self.service.counts[_ERRORS] += 1
        message = f"cannot receive: {os.strerror(error.errno or 0)}"
        record = Record("info", message, service=self.service.name)
        self.context.flood_gate.report((self.service.name, error.errno), record)


class DatagramResponder(DatagramListener):
    """Has a plugin answer each datagram at once."""

    def set_up(self) -> None:
        service = self.service
        handle = service.datagram or service.respond
        assert handle is not None
        self.handle: Callable[[Request], bytes | None] = handle
        self.handled_by = "datagram" if service.datagram else "respond"
        self.gate = service.gate if service.gate.has_rules else None
        self.amplify = service.entry.amplify or self.is_unix

    def serve(self, size: int, peer: Any, asked: LocalAddress) -> int | None:
        refusal = self.guarded(size, peer, asked)
        if refusal is not None:
            self.refuse(refusal, peer)
            return None
        if self.gate is not None:
            refusal = self.gate.admit_datagram(NOBODY_KNOWN if self.is_unix else peer[0])
            if refusal is not None:
                self.turn_away(refusal, peer, asked)
                return None
        room = max(size, LARGEST_ANSWER) if self.amplify else size
        data = SCRATCH[:size].tobytes()
        try:
            answer = self.handle(Request(data, room, self.transport, peer, asked.address))
            if answer is None:
                return None
            if not isinstance(answer, bytes):
                text = f"{self.handled_by}() returned {type(answer).__name__}, not bytes"
                raise TypeError(text)
            if len(answer) <= room and peer:
                return self.send(answer, peer, asked)
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            self._contain(error, peer)
            return None
        self.refuse(Refusal.AMPLIFICATION if peer else Refusal.UNNAMED, peer)
        return None

    def _contain(self, error: BaseException, peer: Any) -> None:
        where = Address.from_sockaddr(self.transport, peer)
        report_failure(self.context, self.service, error, "", where)
