"""The loop engine: one event loop, all connections of a worker, and their end.

Runs in the worker, after confinement. Raises nothing; a plugin that stops the loop or raises
SystemExit in a task of its own is reported, and the loop continues.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from superd.net.addresses import Address
from superd.observe.connections import End
from superd.observe.records import Record, failure, kind_of
from superd.observe.rows import Rows, fitting
from superd.worker.accept.acceptor import Acceptor
from superd.worker.accept.dispatch import socket_server
from superd.worker.blocking.session import Executor
from superd.worker.runtime import descriptors
from superd.worker.runtime.context import Context
from superd.worker.runtime.service import WorkerService
from superd.worker.serve.listener import ListenerHandoff
from superd.worker.serve.session import count_failure
from superd.worker.timeouts import GRACE, Timeouts

FLOOD_WINDOW = 1.0
MOST_CHECKED = 1000  # listeners at once
SHOW = 1.0  # seconds between looks at what services have to show
SHORT_GRACE = 0.25  # where the master kills who has not ended in half a second


class Engine:
    """Serves until it has drained."""

    def __init__(self, context: Context) -> None:
        self.context = context
        context.check_listeners = self.check_listeners
        context.check_descriptors = self.check_descriptors
        context.on_drained = partial(self._end, GRACE)
        context.loop.set_exception_handler(self._loop_failed)
        self.executors: dict[WorkerService, Executor] = {}  # of services whose handlers block
        self._inodes: list[tuple[WorkerService, socket.socket, int]] = []  # to identify listeners
        self._is_to_end = False
        self._ending: asyncio.Task[None] | None = None
        self._is_over = False
        self._own_descriptors = 0
        self._next_check = 0  # which listener is checked next
        self._shown: dict[str, Rows] = {}

    def add(self, service: WorkerService, executor: Executor | None = None) -> None:
        """Serve a service; one whose handlers block has an executor."""
        self.context.services.append(service)
        self.context.heartbeat.add(service)
        if executor is not None:
            self.executors[service] = executor

    def listen(self, service: WorkerService, address: Address, sock: socket.socket) -> None:
        """Serve one of the service's sockets."""
        self._inodes.append((service, sock, os.fstat(sock.fileno()).st_ino))
        executor = self.executors.get(service)
        served = socket_server(self.context, service, address, sock, executor)
        self.context.sockets.append(served)
        if isinstance(served, Acceptor):
            service.acceptors.append(served)

    def become_copy(self) -> None:
        """Close the listeners, and exit as soon as control returns to the loop. Called in each
        process that is forked; does nothing where superd itself forks.
        """
        context = self.context
        if context.is_forking or context.is_copy:
            return
        context.is_copy = True
        for _, sock, inode in self._inodes:
            if _has_inode(sock, inode):
                os.close(sock.fileno())
        context.loop.call_soon(os._exit, 0)

    def run(self, ready: Callable[[], None]) -> None:
        """Serve; return once drained."""
        context = self.context
        loop = context.loop
        for executor in self.executors.values():
            executor.start()
        self._own_descriptors = descriptors.count_descriptors()
        for served in context.sockets:
            served.start()
        loop.call_soon(ready)
        loop.call_later(FLOOD_WINDOW, self._flush)
        Timeouts(context).start()
        loop.is_serving = True
        context.heartbeat.start(context.flood_gate, context.connections)
        while not self._is_over:
            try:
                loop.run_forever()
            except MemoryError:  # there may be some again
                self._tell_of_shortage()
            except Exception:
                raise  # the loop itself is broken: another worker is to take over
            except BaseException as error:  # noqa: BLE001  SystemExit from a plugin's own task
                record = failure("a plugin tried to end the worker", error)
                context.flood_gate.report(("loop", *kind_of(error)), record)
        context.heartbeat.stop()
        for executor in self.executors.values():
            executor.end_all()
        context.flood_gate.flush()
        for service in context.services:
            service.records.end_window()
        context.connection_log.flush()

    def _tell_of_shortage(self) -> None:
        try:
            record = Record("error", "the worker is short of memory")
            self.context.flood_gate.report(("memory",), record)
        except MemoryError:
            pass

    def retire(self) -> None:
        """Accept no more, since others do; end once the last connection has, however long that may
        take, or when reload-drain-timeout is over.
        """
        if not self.context.is_draining:
            self._accept_no_more()
            if timeout := self.context.retire_timeout:
                self.context.loop.call_later(timeout, self._cut, "reload-drain-timeout")

    def drain(self) -> None:
        """Accept no more; end once the last connection has, or when drain-timeout is over."""
        if not self._is_to_end:
            self._is_to_end = True
            self.context.loop.call_later(self.context.drain_timeout, self._cut, "drain-timeout")
            if not self.context.is_draining:
                self._accept_no_more()

    def _accept_no_more(self) -> None:
        self.context.is_draining = True
        for served in self.context.sockets:
            served.stop()
        self.context.tarpit.close_all()
        self.context.end_if_drained()

    def stop(self) -> None:
        """End at once, whoever is connected."""
        for served in self.context.sockets if not self.context.is_draining else ():
            served.stop()
        self.context.is_draining = True
        self._expire_all()
        self._end(SHORT_GRACE)

    def _cut(self, limit: str) -> None:
        if number := len(self.context.connections) + self.context.held:
            message = f"{number} connections cut at the end of {limit}"
            self.context.report(Record("warning", message))
        self._expire_all()
        self.context.loop.call_later(GRACE, self._end, SHORT_GRACE)

    def _end(self, grace: float) -> None:
        """Stop the loop once the tasks that plugins have left have ended, too."""
        if self._ending is None:
            self._ending = self.context.loop.create_task(self._end_tasks(grace))

    async def _end_tasks(self, grace: float) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            if not task.cancelling():  # a second time would break off its cleaning up
                task.cancel()
        ended, others = await asyncio.wait(tasks, timeout=grace) if tasks else (tasks, ())
        for task in others:
            service, place = self.context.heartbeat.whose(task.get_stack())
            text = f"a task was cancelled and has not ended within {grace:g} s, {place}"
            self.context.report(Record("warning", text, service=service))
        for task in ended:
            if not task.cancelled() and (error := task.exception()) is not None:
                context = {"message": "a task failed as it was cancelled", "exception": error}
                self._loop_failed(self.context.loop, context)
        self._is_over = True
        self.context.loop.is_serving = False
        self.context.loop.stop()

    def check_listeners(self, first: int = 0, last: int | None = None) -> None:
        """End at once where a plugin has closed a listener, or put another file in its place.

        The loop could never let go of it. The master has it still, and starts another worker.
        """
        for service, sock, inode in (
            self._inodes[first:last] if not self.context.is_draining else ()
        ):
            if not _has_inode(sock, inode):
                message = "a plugin closed a listener that was not its own; the worker ends"
                self.context.report(Record("error", message, service=service.name))
                self.context.sockets = []
                for each in self.context.services:
                    each.acceptors.clear()
                self.stop()
                return

    def check_descriptors(self) -> None:
        """Find descriptors where none is left: of those who linger and of the tarpit. Drain where
        plugins have leaked them; the successor has them anew.
        """
        context = self.context
        clients = len(context.connections) + len(context.lingering) + len(context.tarpit)
        leaked = descriptors.leaked(self._own_descriptors, clients)
        context.tarpit.close_all()
        context.lingering.close_half()
        if leaked and not context.is_draining:
            message = f"plugins have leaked {leaked} descriptors; another worker is to take over"
            context.report(Record("error", message))
            self.drain()

    def show(self, tell: Callable[[str, Rows], None]) -> None:
        """Tell what services have to show of their state, now and whenever it has changed."""
        self.context.loop.call_later(SHOW, self.show, tell)
        for service in self.context.services:
            try:
                rows = fitting(service.plugin.status())
            except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
                message = f"plugin {service.plugin.name} failed in status"
                record = failure(message, error, service=service.name)
                count_failure(self.context, service, record, *kind_of(error))
                continue
            if rows != self._shown.get(service.name, []):
                self._shown[service.name] = rows
                tell(service.name, rows)

    def _flush(self) -> None:
        self.context.loop.call_later(FLOOD_WINDOW, self._flush)  # first, for the rest takes memory
        self.context.heartbeat.beat()
        self.context.flood_gate.flush()
        for service in self.context.services:
            service.records.end_window()
        first = self._next_check if self._next_check < len(self._inodes) else 0
        self._next_check = first + MOST_CHECKED
        self.check_listeners(first, self._next_check)

    def _expire_all(self) -> None:
        for served in self.context.sockets:
            if isinstance(served, ListenerHandoff):
                served.cancel(End.DRAIN)
        for session in list(self.context.connections.values()):
            session.expire(End.DRAIN)

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report what a task or callback of a plugin raised and nobody asked for."""
        error = context.get("exception")
        message = str(context.get("message") or "an error in the event loop")
        gate = self.context.flood_gate
        if isinstance(error, BaseException):
            gate.report(("loop", *kind_of(error)), failure(message, error))
        else:
            gate.report(("loop", message), Record("error", message))


def _has_inode(sock: socket.socket, inode: int) -> bool:
    try:
        return os.fstat(sock.fileno()).st_ino == inode
    except OSError:
        return False
