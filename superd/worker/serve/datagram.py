"""Datagrams of udp and unixgram: reads a bounded number per wake-up, and answers from the address
that the client has sent to.

Runs in the worker, on the loop. Never answers a datagram that the reflection guard refuses. Never
answers with more bytes than the request had, unless the entry allows it. What a plugin raises is
reported and costs that datagram only. Never raises.
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
from superd.net.pktinfo import LocalAddress
from superd.observe.connections import safe
from superd.observe.records import Record
from superd.plugin.service import Request
from superd.worker.runtime.accounting import endpoint_text
from superd.worker.runtime.context import Context
from superd.worker.runtime.scratch import SCRATCH, SCRATCH_SIZE
from superd.worker.runtime.service import WorkerService
from superd.worker.serve.session import report_failure

MAX_BATCH = 64  # datagrams per wake-up, so that a flood does not starve other sockets
ERROR_PAUSE = 0.1  # seconds without polling after an error that is not transient
MAX_FINAL_BATCHES = 64  # of pending datagrams while draining; more than a socket's buffer holds
MAX_ANSWER_SIZE = 65507  # bytes, of udp over IPv4
MAX_CACHED_LOCAL_ADDRESSES = 1024  # addresses of ours

# A worker that shares the socket may have made it blocking. With MSG_TRUNC the kernel returns the
# whole size of a datagram that did not fit.
RECEIVE_FLAGS = socket.MSG_DONTWAIT | socket.MSG_TRUNC

# errors of recv(2) about an earlier answer, each of which the kernel reports once
TRANSIENT_RECEIVE_ERRNOS = frozenset(
    (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EINTR)
)

# the keys that allow what the guard refuses, for the operator
HINTS = {
    Refusal.AMPLIFICATION: "; the answer is longer than the request, and amplify = false",
    Refusal.SOURCE_PORT: "; it comes from the port of a service, and reflection-guard = true",
}

# as plain numbers: they are used for each datagram
_DATAGRAMS = int(Count.DATAGRAMS)
_ANSWERS = int(Count.ANSWERS)
_ERRORS = int(Count.ERRORS)
_BYTES_IN = int(Count.BYTES_IN)
_BYTES_OUT = int(Count.BYTES_OUT)


class DatagramListener(ABC):
    """Reads from one bound socket, and answers from the address that the client has sent to."""

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
        self.needs_local_address = address.is_wildcard and not self.is_unix
        self.is_stopped = False
        self.bound = LocalAddress(address, self.is_unix or is_single_host(address.host))
        self.local_address_of = lru_cache(MAX_CACHED_LOCAL_ADDRESSES)(
            partial(pktinfo.local_address, address)
        )
        self.guard = guard if service.entry.reflection_guard else None
        self.set_up()

    @abstractmethod
    def set_up(self) -> None:
        """Initialise what `serve` needs."""

    def start(self) -> None:
        """Poll the socket."""
        if not self.is_stopped:
            self.service.scope.run(self.context.loop.add_reader, self.sock, self.receive)

    def stop(self) -> None:
        """Serve the pending datagrams, then close the socket in this worker."""
        self.is_stopped = True
        self.context.loop.remove_reader(self.sock)
        for _ in range(MAX_FINAL_BATCHES):
            if not self.receive():
                break
        self.close()

    def close(self) -> None:
        """Close the socket in this worker."""
        self.sock.close()

    def receive(self) -> bool:
        """Serve pending datagrams, at most MAX_BATCH; return whether more may be pending."""
        received = answered = bytes_in = bytes_out = 0
        if self.context.heartbeat.wants_beat:
            self.context.heartbeat.speed_up()
        for _ in range(MAX_BATCH):
            try:
                if self.needs_local_address:
                    size, ancillary, _, peer = self.sock.recvmsg_into(
                        (SCRATCH,), pktinfo.ANCILLARY_BYTES, RECEIVE_FLAGS
                    )
                    local = self.local_address_of(tuple(ancillary))
                else:
                    size, peer = self.sock.recvfrom_into(SCRATCH, 0, RECEIVE_FLAGS)
                    local = self.bound
            except BlockingIOError:
                break
            except OSError as error:
                self._report_error(error)
                if error.errno in TRANSIENT_RECEIVE_ERRNOS:
                    continue
                self._pause()
                break
            received += 1
            bytes_in += size
            sent = self.serve(size, peer, local)
            if sent is not None:
                answered += 1
                bytes_out += sent
        self.service.counts[_DATAGRAMS] += received
        self.count(bytes_in, answered, bytes_out)
        return received == MAX_BATCH

    @abstractmethod
    def serve(self, size: int, peer: Any, local: LocalAddress) -> int | None:
        """Serve the datagram in SCRATCH; return the size of the answer, if any."""

    def count(self, bytes_in: int, answered: int, bytes_out: int) -> None:
        """Add the sums of a batch of datagrams to the counters."""
        counts = self.service.counts
        counts[_BYTES_IN] += bytes_in
        counts[_ANSWERS] += answered
        counts[_BYTES_OUT] += bytes_out

    def guarded(self, size: int, peer: Any, local: LocalAddress) -> Refusal | None:
        """Return why a datagram must not be answered, whatever the service is; None if it may."""
        if self.guard is not None:
            if not self.is_unix:
                return self.guard.refusal(peer[0], peer[1], local.is_unicast)
            if (refusal := self.guard.unix_refusal(peer)) is not None:
                return refusal
        return Refusal.TOO_LONG if size > SCRATCH_SIZE else None

    def _pause(self) -> None:
        """Stop polling for a while: the loop would only spin."""
        self.context.check_listeners()
        self.context.loop.remove_reader(self.sock)
        self.context.loop.call_later(ERROR_PAUSE, self.start)

    def send(self, answer: bytes | memoryview, peer: Any, local: LocalAddress) -> int | None:
        """Send an answer from the address that the client has sent to; return its size, None if it
        could not be sent.
        """
        try:
            if local.control:
                return self.sock.sendmsg((answer,), local.control, socket.MSG_DONTWAIT, peer)
            return self.sock.sendto(answer, socket.MSG_DONTWAIT, peer)
        except OSError as error:
            self._not_sent(error, peer)
            return None

    def _not_sent(self, error: OSError, peer: Any) -> None:
        if error.errno == errno.EPIPE and not self.is_unix:
            # Another process has shut the socket down for sending. The master detects, and repairs,
            # only a shutdown for receiving.
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RD)
        self.log_refusal(Refusal.SEND, peer, f" ({os.strerror(error.errno or 0)})")

    def record_refusal(self, refusal: Refusal, peer: Any, local: LocalAddress) -> None:
        self.service.counts[refusal_column(refusal)] += 1
        where = endpoint_text(self.transport, peer)
        self.service.records.refused(where, safe(str(local.address)), refusal.value)

    def log_refusal(self, refusal: Refusal, peer: Any, why: str = "") -> None:
        self.service.counts[refusal_column(refusal)] += 1
        where = Address.from_sockaddr(self.transport, peer).endpoint
        message = f"datagram not answered: {refusal.value}{why}{HINTS.get(refusal, '')}"
        record = Record("info", message, service=self.service.name, peer=where)
        self.context.flood_gate.report((self.service.name, refusal), record)

    def _report_error(self, error: OSError) -> None:
        self.service.counts[_ERRORS] += 1
        message = f"cannot receive: {os.strerror(error.errno or 0)}"
        record = Record("info", message, service=self.service.name)
        self.context.flood_gate.report((self.service.name, error.errno), record)


class DatagramResponder(DatagramListener):
    """Answers each datagram at once, with the plugin's `datagram` or `respond`."""

    def set_up(self) -> None:
        service = self.service
        handle = service.datagram or service.respond
        assert handle is not None
        self.handle: Callable[[Request], bytes | None] = handle
        self.method = "datagram" if service.datagram else "respond"
        self.gate = service.gate if service.gate.has_rules else None
        self.may_amplify = service.entry.amplify or self.is_unix

    def serve(self, size: int, peer: Any, local: LocalAddress) -> int | None:
        refusal = self.guarded(size, peer, local)
        if refusal is not None:
            self.log_refusal(refusal, peer)
            return None
        if self.gate is not None:
            refusal = self.gate.admit_datagram(NOBODY_KNOWN if self.is_unix else peer[0])
            if refusal is not None:
                self.record_refusal(refusal, peer, local)
                return None
        may_amplify = self.may_amplify or local.is_loopback
        room = max(size, MAX_ANSWER_SIZE) if may_amplify else size
        data = SCRATCH[:size].tobytes()
        try:
            answer = self.handle(Request(data, room, self.transport, peer, local.address))
            if answer is None:
                return None
            if not isinstance(answer, bytes):
                text = f"{self.method}() returned {type(answer).__name__}, not bytes"
                raise TypeError(text)
            if len(answer) <= room and peer:
                return self.send(answer, peer, local)
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            self._contain(error, peer)
            return None
        self.log_refusal(Refusal.AMPLIFICATION if peer else Refusal.UNNAMED, peer)
        return None

    def _contain(self, error: BaseException, peer: Any) -> None:
        where = Address.from_sockaddr(self.transport, peer)
        report_failure(self.context, self.service, error, "", where)
