"""The channel between a worker and the master: both ends of the protocol.

Channel is the worker's end; the master reads a worker's messages with `parse_message`. A message is
a datagram of JSON or a batch of events. End of file means that the master has exited. Sending never
blocks: a message that does not fit is dropped and counted, and a later record gives the count.
Channel never raises; `parse_message` raises ValueError.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from superd.admission.scoreboard import LOST
from superd.net.passing import receive
from superd.observe.records import Record, Threshold, cut, encoded
from superd.observe.rows import Rows

APPENDED_FILE = "appended-file"
CONFINED = "confined"
READY = "ready"
FAILED = "failed"
LOG = "log"
BAN = "ban"
STATUS = "status"
ANSWER = "answer"

# requests of the master to a worker
LISTEN = "listen"  # comes with a listening socket
CONNECTIONS = "connections"
KILL = "kill"
TRAFFIC = "traffic"
REOPEN = "reopen"
RELEASE = "release"

OBSERVE = "observe"  # the request of a worker to the master, for one of these
METRICS = "metrics"
READINESS = "readiness"

# bytes; a record without its traceback fits, whatever characters it has
MAX_MESSAGE_SIZE = 64 * 1024
EVENT_PREFIX = b'{"time"'  # a batch of events begins like this, and no other message does


class AppendedFile(NamedTuple):
    """A file that a service's plugin has opened for appending, with its descriptor in the worker,
    its flags as fcntl(2) returns them, and its permissions.
    """

    service: str
    number: int
    path: str
    flags: int
    mode: int


class Channel:
    """The worker's end. `counts` are the counters of the whole daemon in the worker's row."""

    def __init__(
        self,
        sock: socket.socket,
        threshold: Threshold,
        counts: memoryview | list[int] | None = None,
    ) -> None:
        self.sock = sock
        self.threshold = threshold
        self._counts = [0] * (LOST + 1) if counts is None else counts
        self.dropped = 0
        self.is_closed = False
        sock.setblocking(False)

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield the master's requests and answers until none is pending. Descriptors that came with
        a message are its `files`, which the caller must close. Sets `is_closed` once the master has
        exited.
        """
        while not self.is_closed:
            files: list[int] = []
            try:
                data, files = receive(self.sock, MAX_MESSAGE_SIZE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                yield json.loads(data) | ({"files": files} if files else {})
            else:
                self.is_closed = True

    def confined(self, files: Iterable[AppendedFile]) -> None:
        """Send the files that plugins append to, just before this worker is confined: from then on
        the master accepts no other, as the worker may serve an attacker. Blocks until all are sent.
        """
        self.sock.setblocking(True)
        for file in files:
            self._send(APPENDED_FILE, file._asdict())
        self._send(CONFINED, {})
        self.sock.setblocking(False)

    def ready(self) -> None:
        self._send(READY, {})

    def failed(self, exit_code: int, text: str) -> None:
        """Report why this worker cannot start."""
        self._send(FAILED, {"exit_code": exit_code, "text": cut(text)})

    def ban(self, service: str, network: str, seconds: float, reason: str) -> None:
        """Ask the master to ban a network from all services."""
        content = {"service": service, "network": network, "seconds": seconds}
        self._send(BAN, {**content, "reason": cut(reason)})

    def status(self, service: str, rows: Rows) -> None:
        """Send the rows that a service shows in `superd status`."""
        self._send(STATUS, {"service": service, "rows": rows})

    def observe(self, what: str) -> bool:
        """Ask the master for its metrics or readiness; return False if the channel is full."""
        return self._send(OBSERVE, {"what": what})

    def answer(self, inquiry: int, content: object, *, is_last: bool) -> bool:
        """Send an answer or a part of one; return False if the channel is full."""
        return self._send(ANSWER, {"inquiry": inquiry, "content": content, "is_last": is_last})

    def events(self, batch: bytes) -> bool:
        """Send lines of connections.ConnectionLog; return False if they were dropped."""
        try:
            self.sock.send(batch)
        except OSError:
            self._counts[LOST] += batch.count(b"\n")
            return False
        return True

    def log(self, record: Record) -> None:
        """Send a record to the master's log, if its level is at or above the threshold."""
        if not self.threshold.admits(record.level):
            return
        stamped = replace(record, pid=os.getpid(), time=time.time())
        if self.dropped:
            stamped = replace(stamped, message=f"{record.message} ({self.dropped} lines lost)")
        if self._send(LOG, encoded(stamped)):
            self.dropped = 0
        else:
            self.dropped += 1
            self._counts[LOST] += 1

    def _send(self, kind: str, content: dict[str, Any]) -> bool:
        message = json.dumps({"kind": kind, **content}).encode("ascii")
        if len(message) > MAX_MESSAGE_SIZE:
            message = json.dumps({"kind": kind, **content, "detail": []}).encode("ascii")
        try:
            self.sock.send(message)
        except OSError:
            return False
        return True


def parse_message(data: bytes) -> dict[str, Any]:
    """Return a worker's message that is not a batch of events; ValueError unless it is a JSON
    object.
    """
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({type(error).__name__})") from None
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message
