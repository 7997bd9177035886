"""A worker's line to the master: log records, bans, `ready`, and why it could not start; and what
the master wants of it.

Messages are datagrams of JSON, or batches of events; the master going away is the end of the file.
Sending never blocks: what does not fit is dropped and counted, and the count follows. Never raises.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from superd.admission.scoreboard import LOST
from superd.net.passing import receive
from superd.observe.records import Record, Threshold, cut, encoded
from superd.observe.rows import Rows

READY = "ready"
FAILED = "failed"
LOG = "log"
BAN = "ban"
STATUS = "status"
ANSWER = "answer"

# what the master asks
CONNECTIONS = "connections"
KILL = "kill"
TRAFFIC = "traffic"

OBSERVE = "observe"  # a worker asks for one of these
METRICS = "metrics"
READINESS = "readiness"

LARGEST = 64 * 1024  # a record fits without its traceback, whatever characters it has
EVENT = b'{"time"'  # begins a batch of events, and no other message of a worker


class Channel:
    """The worker's end of the line; `counts` are the daemon's in the worker's row."""

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

    def heard(self) -> Iterator[dict[str, Any]]:
        """Yield what the master has asked for, and what it has answered; a file that came with it
        is `file`, to be closed by who takes it. `is_closed` tells that the master has gone.
        """
        while not self.is_closed:
            try:
                data, file = receive(self.sock, LARGEST)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                yield json.loads(data) | ({} if file is None else {"file": file})
            else:
                self.is_closed = True

    def ready(self) -> None:
        self._send(READY, {})

    def failed(self, exit_code: int, text: str) -> None:
        """Say why this worker cannot start."""
        self._send(FAILED, {"exit_code": exit_code, "text": cut(text)})

    def ban(self, service: str, network: str, seconds: float, reason: str) -> None:
        """Have the master ban a network from all services."""
        content = {"service": service, "network": network, "seconds": seconds}
        self._send(BAN, {**content, "reason": cut(reason)})

    def status(self, service: str, rows: Rows) -> None:
        """Tell what a service has to show."""
        self._send(STATUS, {"service": service, "rows": rows})

    def observe(self, what: str) -> bool:
        """Ask the master how superd is; False where it cannot be asked."""
        return self._send(OBSERVE, {"what": what})

    def answer(self, inquiry: int, content: object, *, is_last: bool) -> bool:
        """Send an answer, or a part of one; tell whether the master takes it just now."""
        return self._send(ANSWER, {"inquiry": inquiry, "content": content, "is_last": is_last})

    def events(self, batch: bytes) -> bool:
        """Send lines of connections.ConnectionLog; tell whether the master takes them."""
        try:
            self.sock.send(batch)
        except OSError:
            self._counts[LOST] += batch.count(b"\n")
            return False
        return True

    def log(self, record: Record) -> None:
        """Send a record to the master's log, if it is wanted there."""
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
        if len(message) > LARGEST:
            message = json.dumps({"kind": kind, **content, "detail": []}).encode("ascii")
        try:
            self.sock.send(message)
        except OSError:
            return False
        return True


def parsed(data: bytes) -> dict[str, Any]:
    """Return a worker's message that is no batch of events. Raises ValueError where it is not a
    JSON object.
    """
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({type(error).__name__})") from None
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message
