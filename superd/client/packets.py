"""The two-way client of datagrams: sends each read of standard input as one, writes the answers.

Runs in the command line. Datagrams have no end, so it ends once the input has ended and no answer
has arrived for a while. No answer is a success; a refusal is a failure. Raises SuperdError, and
BrokenPipeError if the reader of standard output has closed it.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from superd.client.reaching import Deadline, unreachable
from superd.client.standard import Input, Output
from superd.errors import SuperdError, reason
from superd.net.addresses import Address
from superd.net.destinations import Destination

MAX_DATAGRAM_SIZE = 65507  # bytes (RFC 768, over IPv4)
RECEIVE_SIZE = 256 * 1024  # bytes; a datagram of a unix socket can be larger
QUIET_TIMEOUT = 1.0  # seconds without an answer, after which the client ends


class Datagrams:
    """Sends standard input as datagrams to a destination, and writes the answers."""

    def __init__(
        self,
        target: Destination,
        sockets: Iterator[tuple[socket.socket, Address]],
        source: Input,
        sink: Output,
        *,
        quiet_timeout: float,
        by_lines: bool,
    ) -> None:
        self.target = target
        self.sockets = sockets
        self.source = source
        self.sink = sink
        self.quiet_timeout = quiet_timeout
        self.by_lines = by_lines
        self.client, self.address = next(sockets)
        self.client.setblocking(False)
        self.sent = b""  # the last datagram, to repeat it at the next address after a refusal
        self.failures: list[tuple[Address, str]] = []
        self.has_answered = False  # whether an answer arrived from this address
        self.pending = b""  # a line that is not complete yet
        self.has_ended = False

    def run(self) -> None:
        """Return once the input has ended and no answer has arrived for a while."""
        room = memoryview(bytearray(MAX_DATAGRAM_SIZE))
        while True:
            poll = select.poll()
            poll.register(self.client, select.POLLIN)
            if not self.has_ended:
                poll.register(self.source.descriptor, select.POLLIN)
            poll.register(self.sink.descriptor, 0)
            events = dict(poll.poll(self.quiet_timeout * 1000 if self.has_ended else None))
            if not events:
                return
            if self.sink.descriptor in events:
                raise BrokenPipeError
            if self.client.fileno() in events:
                self._receive()
            if self.source.descriptor in events:
                self._read(room)

    def _read(self, room: memoryview) -> None:
        try:
            size = self.source.read(room)
        except BlockingIOError:
            return
        self.has_ended = not size
        data = bytes(room[:size])
        if not self.by_lines:
            parts = [data] if data else []
        else:
            *lines, self.pending = (self.pending + data).split(b"\n")
            parts = [line + b"\n" for line in lines]
            if self.has_ended and self.pending:
                parts.append(self.pending)
        for part in parts:
            self._send(part)

    def _send(self, data: bytes) -> None:
        while True:
            self.sent = data
            try:
                self.client.send(data)
            except BlockingIOError:
                poll = select.poll()
                poll.register(self.client, select.POLLOUT)
                poll.poll()
            except ConnectionRefusedError as error:
                self._next(error)  # the error is about the datagram before
            except OSError as error:
                raise _unsendable(self.target, data, error) from None
            else:
                return

    def _receive(self) -> None:
        try:
            answer = self.client.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._next(error)
            if self.sent:
                self._send(self.sent)
            return
        self.has_answered = True
        self.sink.write_all(answer)

    def _next(self, error: OSError) -> None:
        """Try the next address after a refusal; SuperdError if there is none."""
        self.failures.append((self.address, reason(error)))
        other = None if self.has_answered else next(self.sockets, None)
        if other is None:
            raise unreachable(self.target, self.failures) from None
        self.client.close()
        self.client, self.address = other
        self.client.setblocking(False)

    def close(self) -> None:
        self.client.close()


def _unsendable(target: Destination, data: bytes, error: OSError) -> SuperdError:
    what = f"a datagram of {len(data)} bytes"
    return SuperdError(f"cannot send {what} to {target}: {reason(error)}")


AMPLIFIED = "; a superd there gives none that is longer than the request, unless amplify = true"


class NoAnswer(SuperdError):
    """No answer arrived in time."""


@dataclass(frozen=True)
class Answer:
    """An answer, its source address, and when the request was sent."""

    data: bytes
    address: Address
    asked_at: float  # seconds since 1970
    round_trip: float


def ask(
    target: Destination,
    sockets: Iterator[tuple[socket.socket, Address]],
    data: bytes,
    deadline: Deadline,
) -> Answer:
    """Send one datagram and return the answer; after a refusal try the next address."""
    failures = []
    for client, address in sockets:
        with client:
            client.settimeout(deadline.left_to_wait)
            asked_at, start = time.time(), time.monotonic()
            try:
                client.send(data)
                answer = client.recv(RECEIVE_SIZE)
                return Answer(answer, address, asked_at, time.monotonic() - start)
            except TimeoutError:
                likely = "" if address.path or address.is_loopback else AMPLIFIED
                raise NoAnswer(f"no answer from {target} in {deadline}{likely}") from None
            except ConnectionRefusedError as error:
                failures.append((address, reason(error)))
            except OSError as error:
                raise _unsendable(target, data, error) from None
    raise unreachable(target, failures)
