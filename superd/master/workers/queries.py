"""What the control socket asks of workers: their answers are waited for, and put together.

Runs in the master, which serves on meanwhile. A worker that hangs or ends is waited for no longer
than a moment, and named; one whose answer is none is ended, as for any other message. ValueError
says what is wrong with an answer.
"""

from __future__ import annotations

import itertools
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from superd.admission.scoreboard import Count, Scoreboard
from superd.config.model import LARGEST_LIMIT
from superd.master.control_socket import line_of
from superd.master.workers.child import Child
from superd.observe.listing import MOST, ROOM, checked, parse_id
from superd.worker import channel

if TYPE_CHECKING:
    from superd.master.logs.log import Log
    from superd.master.workers.generation import Place

# after an upgrade others, as workers may still answer what the program before has asked
_numbers = itertools.count(time.monotonic_ns())


class Inquiry(ABC):
    """Something that workers are asked, and what they have answered so far."""

    def __init__(self, places: Iterable[Place], kind: str, **content: object) -> None:
        self.number = next(_numbers)
        self.generations = {
            place.child: place.generation.number
            for place in places
            if place.child is not None and place.child.ready
        }
        self.waiting: set[Child] = set()
        self.untold: list[Child] = []  # of whom not all is known
        self._kind, self._content = kind, content
        self._reply: Callable[[bytes], None] | None = None

    def begin(self, reply: Callable[[bytes], None]) -> None:
        """Ask; see control.Later."""
        self._reply = reply
        for child in self.generations:
            if child.ask(self._kind, inquiry=self.number, **self._content):
                child.inquiries[self.number] = self
                self.waiting.add(child)
            else:
                self.untold.append(child)
        self._end_if_complete()

    def take(self, child: Child, content: object, *, is_last: bool) -> None:
        """Take an answer, or a part of it."""
        if is_last:
            self._leave(child)
            self._end_if_complete()
        else:
            self.add(child, content)

    def lost(self, child: Child) -> None:
        """Wait no more for a worker that has gone, and with it all that it could tell of."""
        self._leave(child)
        self._end_if_complete()

    def give_up(self) -> None:
        """Wait for nobody any more."""
        self.untold += self.waiting
        for child in list(self.waiting):
            self._leave(child)
        self._end_if_complete()

    def _leave(self, child: Child) -> None:
        child.inquiries.pop(self.number, None)
        self.waiting.discard(child)

    def _end_if_complete(self) -> None:
        if not self.waiting and self._reply is not None:
            reply, self._reply = self._reply, None
            reply(self.answer())

    def told_of_untold(self) -> list[dict[str, int]]:
        """Return which workers have not answered, or not to the end."""
        return [
            {"worker": child.pid, "generation": self.generations[child]} for child in self.untold
        ]

    @abstractmethod
    def add(self, child: Child, content: object) -> None:
        """Take a part of what a worker answers."""

    @abstractmethod
    def answer(self) -> bytes:
        """Return what is known, for who has asked."""


class Connections(Inquiry):
    """Which connections there are; those of one service, if it is named.

    They are kept as they will be sent, so that in the end there is little left to do.
    """

    def __init__(self, places: Iterable[Place], service: str | None) -> None:
        super().__init__(places, channel.CONNECTIONS, service=service)
        self.rows: list[str] = []
        self.sizes = dict.fromkeys(self.generations, 0)
        self.left_out = 0

    def add(self, child: Child, content: object) -> None:
        if type(content) is int and 0 < content < LARGEST_LIMIT:
            self.left_out += content
            return
        if not isinstance(content, list):
            raise ValueError("connections that are none")
        where = {"worker": child.pid, "generation": self.generations[child]}
        rows = [json.dumps({**checked(row, child.services), **where}) for row in content]
        self.sizes[child] += sum(map(len, rows))
        if self.sizes[child] > MOST * ROOM:
            raise ValueError("more connections than it may tell")
        self.rows += rows

    def answer(self) -> bytes:
        rest = json.dumps({"untold": self.told_of_untold(), "left-out": self.left_out})
        return f'{{"connections": [{", ".join(self.rows)}], {rest[1:]}\n'.encode("ascii")


class Kill(Inquiry):
    """Ends a connection, wherever it is."""

    def __init__(self, places: Iterable[Place], name: str, log: Log) -> None:
        serial, number = parse_id(name)
        super().__init__(places, channel.KILL, serial=serial, number=number)
        self.name = name
        self.is_done = False
        self.log = log

    def add(self, child: Child, content: object) -> None:
        if not isinstance(content, bool):
            raise ValueError("neither yes nor no")
        if content and not self.is_done:
            self.is_done = True
            self.log.info(f"connection {self.name} is ended, by the operator")

    def answer(self) -> bytes:
        if self.is_done:
            return line_of({})
        text = f"there is no connection {self.name}"
        if self.untold:
            pids = ", ".join(str(child.pid) for child in self.untold)
            text += f", as far as is known: worker {pids} did not answer"
        return line_of({"error": text})


class Traffic(Inquiry):
    """How many bytes have come and gone by now, in connections that have ended and in others.

    A worker tells both in one, so that none is missed or counted twice; the scoreboard has what
    those before it have left, and those who do not answer.
    """

    def __init__(
        self, places: Sequence[Place], scoreboard: Scoreboard, services: Iterable[str]
    ) -> None:
        super().__init__(places, channel.TRAFFIC)
        self.rows = {place.child: place.number for place in places if place.child is not None}
        self.scoreboard = scoreboard
        self.services = services
        self.told: dict[Child, dict[str, list[int]]] = {}

    def add(self, child: Child, content: object) -> None:
        if not isinstance(content, dict) or not content.keys() <= child.services:
            raise ValueError("the traffic of a service that is not its own")
        for passed in content.values():
            if not isinstance(passed, list) or [type(number) for number in passed] != [int, int]:
                raise ValueError("traffic that is none")
            if any(not 0 <= number < 1 << 64 for number in passed):
                raise ValueError("traffic that is none")
        self.told.setdefault(child, {}).update(content)

    def answer(self) -> bytes:
        traffic = {name: self._of(name) for name in self.services}
        return line_of({"traffic": traffic, "untold": self.told_of_untold()})

    def _of(self, service: str) -> dict[str, int]:
        totals = self.scoreboard.totals(service)
        received, sent = totals["bytes-in"], totals["bytes-out"]
        for child, told in self.told.items():
            if service in told:
                counted = self.scoreboard.row(self.rows[child], service)
                received += told[service][0] - counted[Count.BYTES_IN]
                sent += told[service][1] - counted[Count.BYTES_OUT]
        return {"in": received, "out": sent}
