"""What the control socket asks of workers: collects their answers and combines them.

Runs in the master, which keeps serving meanwhile. Waits only a moment for a worker that hangs or
ends, and names it in the answer. A worker whose answer is invalid is ended, as for any other
message: ValueError says what is wrong with it.
"""

from __future__ import annotations

import itertools
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

from superd.admission.scoreboard import Count, Scoreboard
from superd.config.model import LARGEST_LIMIT
from superd.master.control_socket import line_of
from superd.master.logs.log import Log
from superd.master.workers.child import Child
from superd.master.workers.generation import Slot
from superd.observe.listing import MAX_ROW_SIZE, MAX_ROWS, checked, parse_id
from superd.worker import channel

# starts at the clock: after an upgrade, workers may still answer queries of the program before
_numbers = itertools.count(time.monotonic_ns())


class Query(ABC):
    """One query to all workers that are ready, and their answers so far."""

    def __init__(self, slots: Iterable[Slot], kind: str, **content: object) -> None:
        self.number = next(_numbers)
        self.generations = {
            slot.child: slot.generation.number
            for slot in slots
            if slot.child is not None and slot.child.ready
        }
        self.waiting: set[Child] = set()
        self.unanswered: list[Child] = []  # workers that did not answer in full
        self._kind, self._content = kind, content
        self._reply: Callable[[bytes], None] | None = None

    def begin(self, reply: Callable[[bytes], None]) -> None:
        """Send the query; see control_socket.Later."""
        self._reply = reply
        for child in self.generations:
            if self.send_to(child):
                child.queries[self.number] = self
                self.waiting.add(child)
            else:
                self.unanswered.append(child)
        self._end_if_complete()

    def send_to(self, child: Child) -> bool:
        """Send the query to a worker; False if its channel is full or closed."""
        return child.send(self._kind, inquiry=self.number, **self._content)

    def take(self, child: Child, content: object, *, is_last: bool) -> None:
        """Take an answer, or a part of it."""
        if is_last:
            self._stop_waiting_for(child)
            self._end_if_complete()
        else:
            self.add(child, content)

    def lost(self, child: Child) -> None:
        """Expect no answer from a worker that has ended: its connections ended with it."""
        self._stop_waiting_for(child)
        self._end_if_complete()

    def reply_now(self) -> None:
        """Reply without the answers that are still missing."""
        self.unanswered += self.waiting
        for child in list(self.waiting):
            self._stop_waiting_for(child)
        self._end_if_complete()

    def _stop_waiting_for(self, child: Child) -> None:
        child.queries.pop(self.number, None)
        self.waiting.discard(child)

    def _end_if_complete(self) -> None:
        if not self.waiting and self._reply is not None:
            reply, self._reply = self._reply, None
            reply(self.answer())

    def unanswered_as_json(self) -> list[dict[str, int]]:
        """Return the workers that did not answer in full."""
        return [
            {"worker": child.pid, "generation": self.generations[child]}
            for child in self.unanswered
        ]

    @abstractmethod
    def add(self, child: Child, content: object) -> None:
        """Take a part of a worker's answer; ValueError if it is invalid."""

    @abstractmethod
    def answer(self) -> bytes:
        """Return the combined answer, as a line of JSON."""


class ConnectionsQuery(Query):
    """Lists all connections, or those of one service.

    Rows are kept in the form in which they are sent, so little is left to do at the end.
    """

    def __init__(self, slots: Iterable[Slot], service: str | None) -> None:
        super().__init__(slots, channel.CONNECTIONS, service=service)
        self.rows: list[str] = []
        self.sizes = dict.fromkeys(self.generations, 0)
        self.left_out = 0

    def add(self, child: Child, content: object) -> None:
        if type(content) is int and 0 < content < LARGEST_LIMIT:
            self.left_out += content
            return
        if not isinstance(content, list):
            raise ValueError("invalid list of connections")
        where = {"worker": child.pid, "generation": self.generations[child]}
        rows = [json.dumps({**checked(row, child.services), **where}) for row in content]
        self.sizes[child] += sum(map(len, rows))
        if self.sizes[child] > MAX_ROWS * MAX_ROW_SIZE:
            raise ValueError("more connections than are accepted from one worker")
        self.rows += rows

    def answer(self) -> bytes:
        rest = json.dumps({"untold": self.unanswered_as_json(), "left-out": self.left_out})
        return f'{{"connections": [{", ".join(self.rows)}], {rest[1:]}\n'.encode("ascii")


class KillQuery(Query):
    """Ends one connection, whichever worker has it."""

    def __init__(self, slots: Iterable[Slot], name: str, log: Log) -> None:
        serial, number = parse_id(name)
        super().__init__(slots, channel.KILL, serial=serial, number=number)
        self.name = name
        self.is_done = False
        self.log = log

    def add(self, child: Child, content: object) -> None:
        if not isinstance(content, bool):
            raise ValueError("invalid answer to a kill")
        if content and not self.is_done:
            self.is_done = True
            self.log.info(f"connection {self.name} ended by the operator")

    def answer(self) -> bytes:
        if self.is_done:
            return line_of({})
        text = f"there is no connection {self.name}"
        if self.unanswered:
            pids = ", ".join(str(child.pid) for child in self.unanswered)
            text += f", as far as is known: worker {pids} did not answer"
        return line_of({"error": text})


class ReleaseQuery(Query):
    """Ends the plugins and programs that have listeners of some services, in retired workers."""

    def __init__(self, slots: Iterable[Slot], services: Sequence[str]) -> None:
        super().__init__(slots, channel.RELEASE, services=services)

    def add(self, child: Child, content: object) -> None:
        raise ValueError("an answer to a release has no content")

    def answer(self) -> bytes:
        return line_of({"untold": self.unanswered_as_json()})


class TrafficQuery(Query):
    """Counts the bytes received and sent so far, in connections that have ended and in open ones.

    A worker reports both in one message, so none is missed or counted twice. The scoreboard has the
    bytes of earlier workers, and of workers that do not answer.
    """

    def __init__(
        self, slots: Sequence[Slot], scoreboard: Scoreboard, services: Iterable[str]
    ) -> None:
        super().__init__(slots, channel.TRAFFIC)
        self.rows = {slot.child: slot.number for slot in slots if slot.child is not None}
        self.scoreboard = scoreboard
        self.services = services
        self.reported: dict[Child, dict[str, list[int]]] = {}

    def add(self, child: Child, content: object) -> None:
        if not isinstance(content, dict) or not content.keys() <= child.services:
            raise ValueError("the traffic of a service of another worker")
        for passed in content.values():
            if not isinstance(passed, list) or [type(number) for number in passed] != [int, int]:
                raise ValueError("invalid traffic of a service")
            if any(not 0 <= number < 1 << 64 for number in passed):
                raise ValueError("invalid traffic of a service")
        self.reported.setdefault(child, {}).update(content)

    def answer(self) -> bytes:
        traffic = {name: self._of(name) for name in self.services}
        return line_of({"traffic": traffic, "untold": self.unanswered_as_json()})

    def _of(self, service: str) -> dict[str, int]:
        totals = self.scoreboard.totals(service)
        received, sent = totals["bytes-in"], totals["bytes-out"]
        for child, reported in self.reported.items():
            if service in reported:
                counted = self.scoreboard.row(self.rows[child], service)
                received += reported[service][0] - counted[Count.BYTES_IN]
                sent += reported[service][1] - counted[Count.BYTES_OUT]
        return {"in": received, "out": sent}
