"""Datagrams: udp and unixgram. Reads a bounded number per wake-up, answers from where it was asked.

Runs in the worker, on the loop. Never answers what the reflection guard refuses, nor with more
bytes than the request had unless the entry says so. What a plugin raises is reported and costs
that datagram only. Never raises.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from superd.admission.reflection import ReflectionGuard
from superd.admission.refusals import Refusal
from superd.admission.scoreboard import Count, refusal_column
from superd.net import pktinfo
from superd.net.addresses import Address
from superd.observe.records import Record, failure
from superd.plugin.service import Request
from superd.worker.serving import Serving

if TYPE_CHECKING:
    from superd.worker.engine import Engine

BATCH = 64  # datagrams per wake-up
LARGEST = 1 << 18  # udp carries 65,507 bytes at most, a unix datagram as much as fits its buffer
LARGEST_ANSWER = 65507

_DATAGRAMS = int(Count.DATAGRAMS)
_ANSWERS = int(Count.ANSWERS)
_ERRORS = int(Count.ERRORS)
_BYTES_IN = int(Count.BYTES_IN)
_BYTES_OUT = int(Count.BYTES_OUT)


class DatagramListener:
    """Serves one bound socket."""

    def __init__(
        self,
        engine: Engine,
        serving: Serving,
        address: Address,
        sock: socket.socket,
        guard: ReflectionGuard,
    ) -> None:
        handle = serving.datagram or serving.respond
        assert handle is not None
        self.handle: Callable[[Request], bytes | None] = handle
        self.engine = engine
        self.serving = serving
        self.address = address
        self.sock = sock
        self.is_unix = address.transport.is_unix
        self.asks_destination = address.is_wildcard and not self.is_unix
        self.guard = guard if serving.entry.reflection_guard and not self.is_unix else None
        self.amplify = serving.entry.amplify or self.is_unix
        self.buffer = bytearray(LARGEST)
        self.view = memoryview(self.buffer)

    def start(self) -> None:
        self.engine.loop.add_reader(self.sock, self.receive)

    def stop(self) -> None:
        """Answer what has come, then poll no more and let go of the socket."""
        self.engine.loop.remove_reader(self.sock)
        self.receive()
        self.sock.close()

    def receive(self) -> None:
        """Take datagrams until none waits, but no more than BATCH."""
        counts = self.serving.counts
        for _ in range(BATCH):
            try:
                if self.asks_destination:
                    size, ancillary, _, peer = self.sock.recvmsg_into(
                        [self.buffer], pktinfo.SPACE, socket.MSG_DONTWAIT
                    )
                else:
                    size, peer = self.sock.recvfrom_into(self.buffer, 0, socket.MSG_DONTWAIT)
                    ancillary = []
            except BlockingIOError:
                return
            except OSError as error:
                # an ICMP error for an earlier answer, or the kernel is out of memory
                self._report_error(error)
                if error.errno not in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH):
                    return
                continue
            counts[_DATAGRAMS] += 1
            counts[_BYTES_IN] += size
            self._serve(bytes(self.view[:size]), peer, ancillary)

    def _serve(self, data: bytes, peer: Any, ancillary: list[pktinfo.Ancillary]) -> None:
        local = self.address
        control: list[pktinfo.Ancillary] = []
        to_one_host = True
        if ancillary:
            host, to_one_host, control = pktinfo.destination(ancillary)
            local = Address(self.address.transport, host, self.address.port)
        if self.guard is not None:
            refusal = self.guard.refusal(peer[0], peer[1], to_one_host)
            if refusal is not None:
                self._refuse(refusal, peer)
                return
        room = LARGEST_ANSWER if self.amplify else len(data)
        try:
            answer = self.handle(Request(data, room, self.address.transport, peer, local))
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            self._contain(error, peer)
            return
        if answer is None:
            return
        if len(answer) > room:
            self._refuse(Refusal.AMPLIFICATION, peer)
        elif not peer:
            self._refuse(Refusal.UNNAMED, peer)
        else:
            self._send(answer, peer, control)

    def _send(self, answer: bytes, peer: Any, control: list[pktinfo.Ancillary]) -> None:
        try:
            if control:
                self.sock.sendmsg([answer], control, socket.MSG_DONTWAIT, peer)
            else:
                self.sock.sendto(answer, socket.MSG_DONTWAIT, peer)
        except OSError:
            self._refuse(Refusal.SEND, peer)
        else:
            self.serving.counts[_ANSWERS] += 1
            self.serving.counts[_BYTES_OUT] += len(answer)

    def _refuse(self, refusal: Refusal, peer: Any) -> None:
        self.serving.counts[refusal_column(refusal)] += 1
        where = Address.of_socket(self.address.transport, peer).endpoint
        message = f"datagram not answered: {refusal.value}"
        record = Record("info", message, service=self.serving.name, peer=where)
        self.engine.gate.report((self.serving.name, refusal), record)

    def _contain(self, error: BaseException, peer: Any) -> None:
        self.serving.counts[_ERRORS] += 1
        where = Address.of_socket(self.address.transport, peer).endpoint
        message = f"plugin {self.serving.plugin.name} failed"
        record = failure(message, error, service=self.serving.name, peer=where)
        self.engine.gate.report((self.serving.name, type(error)), record)

    def _report_error(self, error: OSError) -> None:
        self.serving.counts[_ERRORS] += 1
        message = f"cannot receive: {os.strerror(error.errno or 0)}"
        record = Record("info", message, service=self.serving.name)
        self.engine.gate.report((self.serving.name, error.errno), record)
