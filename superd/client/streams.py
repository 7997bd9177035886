"""The two-way client of a connection: standard input to the peer, and back.

Runs in the command line. One poll(2) loop and one buffer each way: a side is read only once the
other has taken all earlier data, so a slow reader slows its writer and memory stays bounded. Never
waits outside of poll(2). Raises SuperdError, and BrokenPipeError if the reader of standard
output has closed it.

How it ends:
1. Standard input ends: the rest is sent, then the sending side of the connection is closed.
2. The peer ends its side: the rest is written. At a terminal the client then exits, as telnet
   does; otherwise standard input is still sent to its end, as the peer may have closed only its
   sending side. A connection that is closed both ways ends the client as well.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import Protocol

from superd.client.standard import Input, Output
from superd.errors import SuperdError, reason

STREAM_BUFFER_SIZE = 256 * 1024  # bytes; a pipe takes 64 KiB; a socket read at full speed has more
PACKET_SIZE = 64 * 1024  # bytes, which fit the kernel's default buffers of unixpacket sockets
IN, OUT = select.POLLIN, select.POLLOUT
LOST = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Stream(Protocol):
    """A connection, encrypted or not, that never blocks."""

    socket: socket.socket

    def fileno(self) -> int:
        """Return the descriptor for poll(2)."""

    def events(self, wanted: int) -> int:
        """Return the events to poll for, so that the wanted ones can be handled."""

    def ready(self, events: int) -> int:
        """Handle the events that poll(2) returned; return the rest for the caller."""

    @property
    def has_more(self) -> bool:
        """Whether data may be buffered here, where poll(2) does not see it."""

    @property
    def has_unsent(self) -> bool:
        """Whether data was accepted by `send` and is not on its way yet."""

    def receive(self, room: memoryview) -> int:
        """Return the number of bytes; 0 at the end. BlockingIOError, OSError, SuperdError."""

    def send(self, data: memoryview) -> int:
        """Return the number of bytes taken. BlockingIOError, OSError."""

    def end(self) -> None:
        """Close the sending side. BlockingIOError: call it again."""


class Plain:
    """A connection without encryption."""

    has_more = False
    has_unsent = False

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def fileno(self) -> int:
        return self.socket.fileno()

    def events(self, wanted: int) -> int:
        return wanted

    def ready(self, events: int) -> int:
        return events

    def receive(self, room: memoryview) -> int:
        return self.socket.recv_into(room)

    def send(self, data: memoryview) -> int:
        return self.socket.send(data)

    def end(self) -> None:
        with contextlib.suppress(OSError):  # the peer may have closed it
            self.socket.shutdown(socket.SHUT_WR)


class Direction:
    """One direction: data that was read and is not written yet."""

    def __init__(self, size: int) -> None:
        self.room = memoryview(bytearray(size))
        self.left = self.room[:0]
        self.has_ended = False  # nothing more can be read
        self.failure: Exception | None = None

    @property
    def wants_more(self) -> bool:
        return not self.left and not self.has_ended

    @property
    def is_done(self) -> bool:
        return self.has_ended and not self.left

    def fail(self, failure: Exception) -> None:
        self.has_ended, self.failure, self.left = True, failure, self.room[:0]


class Exchange:
    """Copies standard input to a stream, and the stream to standard output."""

    def __init__(
        self,
        name: str,
        stream: Stream,
        source: Input,
        sink: Output,
        *,
        half_close: bool = True,
        idle_timeout: float | None = None,
        size: int = STREAM_BUFFER_SIZE,
    ) -> None:
        self.name = name
        self.stream = stream
        self.source = source
        self.sink = sink
        self.half_close = half_close
        self.idle_timeout = idle_timeout
        self.up, self.down = Direction(size), Direction(size)
        self.is_ending = False  # the sending side is being closed, which may take several attempts
        self.is_lost = False
        self.last_progress = time.monotonic()
        self._poll = select.poll()
        self._watched: dict[int, int] = {}

    def run(self) -> None:
        """Return once both sides have ended."""
        while not self._is_over():
            events = self._wait()
            ready = self.stream.ready(events.get(self.stream.fileno(), 0))
            if self.stream.has_more:
                ready |= IN
            if self.up.wants_more and events.get(self.source.descriptor):
                self._read()
            elif ready & (OUT | LOST) and (self.up.left or self.is_ending):
                self._send()
            if ready and self.down.wants_more:
                self._receive()
            elif ready & LOST and not self.up.left and not self.is_ending:
                self._handle_loss()
            out = events.get(self.sink.descriptor, 0)
            if out & OUT and self.down.left:
                self._write()
            elif out & LOST:
                raise BrokenPipeError
        for direction in (self.down, self.up):
            if direction.failure:
                raise direction.failure

    def _is_over(self) -> bool:
        if not self.down.is_done:
            return False
        if self.is_lost or self.up.failure or self.down.failure:
            return True
        if self.is_ending or self.up.left or self.stream.has_unsent:
            return False
        return self.up.has_ended or self.source.is_terminal

    def _wait(self) -> dict[int, int]:
        """Wait for events; return them by descriptor."""
        up, down = self.up, self.down
        wanted = IN if down.wants_more else 0
        if up.left or self.is_ending:
            wanted |= OUT
        # Without wanted events the connection is polled only if its loss is not known yet: poll(2)
        # would report a lost one over and over.
        may_be_lost = down.has_ended and not self.is_lost and not up.has_ended
        wanted = self.stream.events(wanted)
        self._watch(self.stream.fileno(), wanted, wanted or may_be_lost)
        self._watch(self.source.descriptor, IN, up.wants_more and not (self.is_lost or up.failure))
        self._watch(self.sink.descriptor, OUT if down.left else 0, True)
        timeout: float | None = None
        if self.stream.has_more and down.wants_more:
            timeout = 0
        elif self.idle_timeout is not None and not down.left:
            timeout = max(0.0, self.last_progress + self.idle_timeout - time.monotonic()) * 1000
        events = dict(self._poll.poll(timeout))
        if (
            not events
            and self.idle_timeout is not None
            and time.monotonic() >= self.last_progress + self.idle_timeout
        ):
            raise SuperdError(f"no byte to or from {self.name} in {self.idle_timeout:g} s")
        return events

    def _watch(self, descriptor: int, events: int, wanted: object) -> None:
        events = events if wanted else -1
        if self._watched.get(descriptor, -1) == events:
            return
        self._watched[descriptor] = events
        if wanted:
            self._poll.register(descriptor, events)
        else:
            self._poll.unregister(descriptor)

    def _read(self) -> None:
        try:
            size = self.source.read(self.up.room)
        except BlockingIOError:
            return
        if size:
            self.up.left = self.up.room[:size]
            self._send()
            return
        self.up.has_ended = True
        if self.half_close:
            self.is_ending = True
            self._send()

    def _send(self) -> None:
        try:
            if self.up.left:
                self.up.left = self.up.left[self.stream.send(self.up.left) :]
                self.last_progress = time.monotonic()
            elif self.is_ending:
                self.stream.end()
                self.is_ending = False
        except BlockingIOError:
            pass
        except (OSError, SuperdError) as error:
            self.is_ending = False
            # data that the peer sent before it closed can still be read
            why = reason(error) if isinstance(error, OSError) else str(error)
            self.up.fail(SuperdError(f"{self.name} closed before all was sent: {why}"))

    def _handle_loss(self) -> None:
        """Find out whether the peer closed the connection before it had read everything."""
        self.is_lost = True
        number = self.stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            why = os.strerror(number)
            self.up.fail(SuperdError(f"{self.name} closed before all was sent: {why}"))

    def _receive(self) -> None:
        try:
            size = self.stream.receive(self.down.room)
        except BlockingIOError:
            return
        except SuperdError as error:
            self.down.fail(error)
            return
        except OSError as error:
            self.down.fail(SuperdError(f"{self.name} broke the connection: {reason(error)}"))
            return
        self.last_progress = time.monotonic()
        if size:
            self.down.left = self.down.room[:size]
            self._write()
        else:
            self.down.has_ended = True

    def _write(self) -> None:
        self.down.left = self.down.left[self.sink.write(self.down.left) :]
