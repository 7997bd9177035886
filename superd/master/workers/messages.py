"""Reads the workers' messages (records, events, bans, queries) and acts on them.

Runs in the master. Believes a worker only about its own services; an invalid message ends the
worker, and nothing else. Raises nothing.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from superd.errors import ExitCode
from superd.master.bans import Bans
from superd.master.logs.log import Log
from superd.master.workers.child import ALLOWANCE, Child
from superd.master.workers.output import Output
from superd.net.patterns import parse_network, shown_network
from superd.observe.records import Record, decoded
from superd.observe.rows import checked
from superd.worker import channel
from superd.worker.channel import AppendedFile


class MessageReader:
    """Reads from workers by the master's selector, within their allowance.

    `answer` answers a worker's query about superd, or raises ValueError.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        log: Log,
        bans: Bans,
        answer: Callable[[Child, object], None],
    ) -> None:
        self.selector = selector
        self.log = log
        self.bans = bans
        self.answer = answer

    def listen_to(self, child: Child) -> None:
        """Read a worker's messages and output as they arrive."""
        if not self._is_registered(child):
            self.selector.register(child.channel, selectors.EVENT_READ, partial(self._read, child))
        output = child.output
        if output is not None and not output.is_closed:
            self._write_output(child, output.renew())
            if output not in self.selector.get_map():
                read = partial(self._read_output, child, output)
                self.selector.register(output, selectors.EVENT_READ, read)

    def read_rest(self, child: Child) -> None:
        """Read what a worker sent before it ended, and close its channel."""
        if self._is_registered(child):
            self.selector.unregister(child.channel)
        child.allowance = ALLOWANCE
        self._take_all(child)
        child.channel.close()
        if child.output is not None:
            if child.output in self.selector.get_map():
                self.selector.unregister(child.output)
            self._write_output(child, child.output.close())
            child.output = None
        for query in list(child.queries.values()):
            query.lost(child)

    def _is_registered(self, child: Child) -> bool:
        return child.channel.fileno() >= 0 and child.channel in self.selector.get_map()

    def _read(self, child: Child) -> None:
        """Take a worker's messages, until there are no more or its allowance is used up."""
        if not self._is_registered(child):
            return  # it was reaped in the same turn of the loop
        self._take_all(child)
        if child.has_closed or not child.allowance:
            self.selector.unregister(child.channel)

    def _read_output(self, child: Child, output: Output) -> None:
        """Log what a worker has printed, until its allowance is used up."""
        if output not in self.selector.get_map():
            return  # the worker was reaped in the same turn of the loop
        self._write_output(child, output.lines())
        if output.is_closed or not output.allowance:
            self.selector.unregister(output)

    def _write_output(self, child: Child, lines: Iterable[str]) -> None:
        service = next(iter(child.services)) if len(child.services) == 1 else ""
        for line in lines:
            self.log.write(Record("warning", line, service, pid=child.pid, time=time.time()))

    def _take_all(self, child: Child) -> None:
        try:
            for message in child.messages():
                self._take(child, message)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            self.log.error(f"worker {child.pid} sent an invalid message: {error}")
            child.has_closed = True

    def _take(self, child: Child, message: dict[str, Any] | bytes) -> None:
        if isinstance(message, bytes):
            self.log.write_events(message)
            return
        kind = message.pop("kind")
        if kind == channel.LOG:
            self.log.write(decoded(message, child.pid))
        elif kind == channel.APPENDED_FILE:
            self._keep_file(child, AppendedFile(**message))
        elif kind == channel.CONFINED:
            child.is_confined = True
        elif kind == channel.READY:
            child.ready = child.is_confined = True
        elif kind == channel.FAILED:
            child.failure = (ExitCode(message["exit_code"]), str(message["text"]))
        elif kind == channel.BAN:
            self._ban(child, **message)
        elif kind == channel.STATUS:
            self._keep_rows(child, **message)
        elif kind == channel.OBSERVE:
            self._observe(child, **message)
        elif kind == channel.ANSWER:
            self._take_answer(child, **message)
        else:
            raise ValueError(f"unknown kind {kind!r}")

    def _keep_file(self, child: Child, file: AppendedFile) -> None:
        """Keep the name of a file that a plugin appends to."""
        if child.is_confined:
            raise ValueError("a file that was opened after the worker was confined")
        if file.service not in child.services or not isinstance(file.path, str):
            raise ValueError("a file of a service of another worker, or without a path")
        if not all(type(one) is int and one >= 0 for one in (file.number, file.flags, file.mode)):
            raise ValueError("a file with an invalid descriptor, flags or permissions")
        child.files.append(file)

    def _keep_rows(self, child: Child, *, service: str, rows: object) -> None:
        """Keep the rows that a service shows of its state."""
        if service not in child.services:
            raise ValueError("the state of a service of another worker")
        child.rows[service] = checked(rows)

    def _observe(self, child: Child, *, what: object) -> None:
        """Answer a worker's query about superd."""
        self.answer(child, what)

    def _take_answer(self, child: Child, *, inquiry: int, content: object, is_last: bool) -> None:
        """Take an answer, or a part of one; an answer that comes too late is dropped."""
        if not isinstance(inquiry, int) or not isinstance(is_last, bool):
            raise ValueError("invalid answer to a query")
        if (query := child.queries.get(inquiry)) is not None:
            query.take(child, content, is_last=is_last)

    def _ban(
        self, child: Child, *, service: str, network: str, seconds: float, reason: str
    ) -> None:
        """Ban a network that a plugin wants banned."""
        are_texts = isinstance(network, str) and isinstance(reason, str)
        if service not in child.services or not are_texts:
            raise ValueError("a ban by a service of another worker")
        banned = parse_network(network)
        known = banned in self.bans
        if error := self.bans.add(banned, float(seconds), f"service {service}", reason):
            self.log.warning(f"not banned: {error}", service)
        elif not known:
            self.log.info(f"banned {shown_network(banned)} for {float(seconds):.0f} s", service)
