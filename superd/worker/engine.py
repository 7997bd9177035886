"""The loop engine: one event loop, all connections of a worker, and their end.

Runs in the worker, after confinement. Raises nothing; a plugin that stops the loop or raises
SystemExit in a task of its own is reported, and the loop goes on.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any

from superd.admission.reflection import ReflectionGuard
from superd.net.addresses import Address
from superd.observe.connections import ConnectionLog, End
from superd.observe.records import FloodGate, Record, Report, Threshold, failure, kind_of
from superd.observe.rows import Rows, fitting
from superd.plugin.relay import Poller
from superd.worker.accept.acceptor import Acceptor
from superd.worker.accept.dispatch import Listener, listener_for
from superd.worker.accept.refuse import Tarpit
from superd.worker.blocking.session import Crew
from superd.worker.runtime import descriptors
from superd.worker.runtime.heartbeat import Pulse
from superd.worker.runtime.loop import WorkerLoop
from superd.worker.runtime.names import Names
from superd.worker.runtime.polling import poller_of
from superd.worker.runtime.service import Serving
from superd.worker.serve.listener import Handover
from superd.worker.serve.respond import Lingering
from superd.worker.serve.session import Session, count_failure
from superd.worker.timeouts import GRACE, Timeouts

FLOOD_WINDOW = 1.0
MOST_CHECKED = 1000  # listeners at once
SHOW = 1.0  # seconds between looks at what services have to show
SHORT_GRACE = 0.25  # where the master kills who has not ended in half a second


class Engine:
    """Serves until told to drain. `serial` is unique among the workers of one master."""

    def __init__(
        self,
        loop: WorkerLoop,
        serial: int,
        report: Report,
        threshold: Threshold,
        send_events: Callable[[bytes], bool],
        guard: ReflectionGuard,
        drain_timeout: float,
        retire_timeout: float,
        pulse: Pulse,
        resolver: str = "",
    ) -> None:
        def lost(number: int) -> None:
            self.report(Record("warning", f"{number} records of connections were lost"))

        self.loop = loop
        self.serial = serial
        self.guard = guard
        self.report = report
        self.threshold = threshold
        self.connection_log = ConnectionLog(os.getpid(), send_events, self.loop.call_later, lost)
        self.flood_gate = FloodGate(report)
        self.drain_timeout = drain_timeout
        self.retire_timeout = retire_timeout
        self.loop.set_exception_handler(self._loop_failed)
        self.sessions: dict[int, Session] = {}
        self.pulse = pulse
        self.names = Names(loop, resolver)
        self.lingering = Lingering(self)
        self.tarpit = Tarpit(self)
        self.listeners: list[Listener] = []
        self.inodes: list[tuple[Serving, socket.socket, int]] = []  # what listeners are known by
        self.servings: list[Serving] = []
        self.crews: dict[Serving, Crew] = {}  # of those whose handlers block
        self.flows = Counter[str]()  # sources of datagrams, by service
        self.draining = False
        self.is_to_end = False
        self.last_words: asyncio.Task[None] | None = None
        self.over = False
        self.is_copy = False  # a process that a plugin has forked, and not the worker
        self.is_forking = False  # the worker itself: and in what it forks this stays so
        self.held = 0
        self.own_descriptors = 0
        self._last_number = 0
        self._next_check = 0  # which listener is looked at next
        self._shown: dict[str, Rows] = {}

    @cached_property
    def poller(self) -> Poller:
        """What relays wait for their sockets with."""
        return poller_of(self.loop)

    def add(self, serving: Serving, crew: Crew | None = None) -> None:
        """Make the engine responsible for a service; one whose handlers block has a crew."""
        self.servings.append(serving)
        self.pulse.add(serving)
        if crew is not None:
            self.crews[serving] = crew

    def listen(self, serving: Serving, address: Address, sock: socket.socket) -> None:
        """Serve one of the service's sockets."""
        self.inodes.append((serving, sock, os.fstat(sock.fileno()).st_ino))
        self.listeners.append(listener_for(self, serving, address, sock))

    def become_copy(self) -> None:
        """Keep no port, and end where superd would go on; called in each process that is forked."""
        if self.is_forking or self.is_copy:
            return
        self.is_copy = True
        for _, sock, inode in self.inodes:
            if _has_inode(sock, inode):
                os.close(sock.fileno())
        self.loop.call_soon(os._exit, 0)

    def enter(self, session: Session) -> int:
        """Book a connection and return its number."""
        number = self._last_number = self._last_number + 1
        self.sessions[number] = session
        return number

    def leave(self, session: Session) -> bool:
        """Strike a connection off; tell whether it was still booked."""
        known = self.sessions.pop(session.number, None) is not None
        if self.draining:
            self.end_if_drained()
        return known

    def pause(self, serving: Serving, seconds: float) -> None:
        """Leave who comes to a service in the backlog for a while."""
        if seconds:
            for listener in self.listeners:
                if isinstance(listener, Acceptor) and listener.serving is serving:
                    listener.pause_for(seconds)

    def hold(self, seconds: float, go_on: Callable[[], None]) -> None:
        """Go on with a client in a while; the engine does not end before that."""

        def later() -> None:
            self.held -= 1
            go_on()
            self.end_if_drained()

        self.held += 1
        self.loop.call_later(seconds, later)

    def next_number(self) -> int:
        """Return the number of a new connection."""
        self._last_number += 1
        return self._last_number

    def end_if_drained(self) -> None:
        """Stop the loop once nobody is left."""
        if self.draining and not (self.sessions or self.lingering or self.names or self.held):
            self._end(GRACE)

    def run(self, ready: Callable[[], None]) -> None:
        """Serve; return once drained."""
        for crew in self.crews.values():
            crew.start()
        self.own_descriptors = descriptors.count_descriptors()
        for listener in self.listeners:
            listener.start()
        self.loop.call_soon(ready)
        self.loop.call_later(FLOOD_WINDOW, self._flush)
        Timeouts(self).start()
        self.loop.is_serving = True
        self.pulse.start(self.flood_gate, self.sessions)
        while not self.over:
            try:
                self.loop.run_forever()
            except MemoryError:  # there may be some again
                self._tell_of_shortage()
            except Exception:
                raise  # the loop itself is broken: another worker is to take over
            except BaseException as error:  # noqa: BLE001  SystemExit from a plugin's own task
                record = failure("a plugin tried to end the worker", error)
                self.flood_gate.report(("loop", *kind_of(error)), record)
        self.pulse.stop()
        for crew in self.crews.values():
            crew.end_all()
        self.flood_gate.flush()
        for serving in self.servings:
            serving.records.end_window()
        self.connection_log.flush()

    def _tell_of_shortage(self) -> None:
        try:  # noqa: SIM105  suppress() would take memory itself
            self.flood_gate.report(("memory",), Record("error", "the worker is short of memory"))
        except MemoryError:
            pass

    def retire(self) -> None:
        """Accept no more, since others do; end once the last connection has, however long that may
        take, or when reload-drain-timeout is over.
        """
        if not self.draining:
            self._accept_no_more()
            if self.retire_timeout:
                self.loop.call_later(self.retire_timeout, self._cut, "reload-drain-timeout")

    def drain(self) -> None:
        """Accept no more; end once the last connection has, or when drain-timeout is over."""
        if not self.is_to_end:
            self.is_to_end = True
            self.loop.call_later(self.drain_timeout, self._cut, "drain-timeout")
            if not self.draining:
                self._accept_no_more()

    def _accept_no_more(self) -> None:
        self.draining = True
        for listener in self.listeners:
            listener.stop()
        self.tarpit.let_all_go()
        self.end_if_drained()

    def stop(self) -> None:
        """End at once, whoever is connected."""
        for listener in self.listeners if not self.draining else ():
            listener.stop()
        self.draining = True
        self._expire_all()
        self._end(SHORT_GRACE)

    def _cut(self, limit: str) -> None:
        if number := len(self.sessions) + self.held:
            message = f"{number} connections cut at the end of {limit}"
            self.report(Record("warning", message))
        self._expire_all()
        self.loop.call_later(GRACE, self._end, SHORT_GRACE)

    def _end(self, grace: float) -> None:
        """Stop the loop once the tasks that plugins have left have ended, too."""
        if self.last_words is None:
            self.last_words = self.loop.create_task(self._end_tasks(grace))

    async def _end_tasks(self, grace: float) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            if not task.cancelling():  # a second time would break off its cleaning up
                task.cancel()
        ended, others = await asyncio.wait(tasks, timeout=grace) if tasks else (tasks, ())
        for task in others:
            service, place = self.pulse.whose(task.get_stack())
            text = f"a task was cancelled and has not ended within {grace:g} s, {place}"
            self.report(Record("warning", text, service=service))
        for task in ended:
            if not task.cancelled() and (error := task.exception()) is not None:
                context = {"message": "a task failed as it was cancelled", "exception": error}
                self._loop_failed(self.loop, context)
        self.over = True
        self.loop.is_serving = False
        self.loop.stop()

    def check_listeners(self, first: int = 0, last: int | None = None) -> None:
        """End at once where a plugin has closed a listener, or put another file in its place.

        The loop could never let go of it. The master has it still, and starts another worker.
        """
        for serving, sock, inode in self.inodes[first:last] if not self.draining else ():
            if not _has_inode(sock, inode):
                message = "a plugin closed a listener that was not its own; the worker ends"
                self.report(Record("error", message, service=serving.name))
                self.listeners = []
                self.stop()
                return

    def check_descriptors(self) -> None:
        """Find descriptors where none is left: of those who linger and of the tarpit. Drain where
        plugins have leaked them; the successor has them anew.
        """
        connections = len(self.sessions) + len(self.lingering) + len(self.tarpit)
        leaked = descriptors.leaked(self.own_descriptors, connections)
        self.tarpit.let_all_go()
        self.lingering.make_room()
        if leaked and not self.draining:
            message = f"plugins have leaked {leaked} descriptors; another worker is to take over"
            self.report(Record("error", message))
            self.drain()

    def show(self, tell: Callable[[str, Rows], None]) -> None:
        """Tell what services have to show of their state, now and whenever it has changed."""
        self.loop.call_later(SHOW, self.show, tell)
        for serving in self.servings:
            try:
                rows = fitting(serving.plugin.status())
            except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
                message = f"plugin {serving.plugin.name} failed in status"
                record = failure(message, error, service=serving.name)
                count_failure(self, serving, record, *kind_of(error))
                continue
            if rows != self._shown.get(serving.name, []):
                self._shown[serving.name] = rows
                tell(serving.name, rows)

    def _flush(self) -> None:
        self.loop.call_later(FLOOD_WINDOW, self._flush)  # first, for the rest takes memory
        self.pulse.beat()
        self.flood_gate.flush()
        for serving in self.servings:
            serving.records.end_window()
        first = self._next_check if self._next_check < len(self.inodes) else 0
        self._next_check = first + MOST_CHECKED
        self.check_listeners(first, self._next_check)

    def _expire_all(self) -> None:
        for listener in self.listeners:
            if isinstance(listener, Handover):
                listener.cancel(End.DRAIN)
        for session in list(self.sessions.values()):
            session.expire(End.DRAIN)

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report what a task or callback of a plugin raised and nobody asked for."""
        error = context.get("exception")
        message = str(context.get("message") or "an error in the event loop")
        if isinstance(error, BaseException):
            self.flood_gate.report(("loop", *kind_of(error)), failure(message, error))
        else:
            self.flood_gate.report(("loop", message), Record("error", message))


def _has_inode(sock: socket.socket, inode: int) -> bool:
    try:
        return os.fstat(sock.fileno()).st_ino == inode
    except OSError:
        return False
