"""The engine: runs the event loop and all connections of a worker, until it has drained.

Runs in the worker, after confinement. Raises nothing; a plugin that stops the loop or raises
SystemExit in a task of its own is reported, and the loop continues.
"""

from __future__ import annotations

import asyncio
import os
import socket
import traceback
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

from superd.net.addresses import Address
from superd.observe.connections import End
from superd.observe.records import Record, failure, kind_of
from superd.observe.rows import Rows, fitting
from superd.process.forking import leave_parents_signals
from superd.worker.accept.acceptor import Acceptor
from superd.worker.accept.dispatch import served_socket
from superd.worker.blocking.session import Executor
from superd.worker.runtime import descriptors
from superd.worker.runtime.context import Context
from superd.worker.runtime.polling import PollingLoop
from superd.worker.runtime.service import WorkerService
from superd.worker.serve.listener import ListenerHandoff
from superd.worker.serve.session import count_failure
from superd.worker.timeouts import CANCEL_TIMEOUT, Timeouts

FLUSH_INTERVAL = 1.0  # seconds between reports of repeated log records and counted events
MAX_CHECKED_LISTENERS = 1000  # at each flush
STATUS_INTERVAL = 1.0  # seconds between checks of what services show of their state
SECOND_CANCEL_TIMEOUT = 0.25  # seconds, after connections were cut and had CANCEL_TIMEOUT


class Engine:
    """Serves until it has drained."""

    def __init__(self, context: Context) -> None:
        self.context = context
        context.check_listeners = self.check_listeners
        context.check_descriptors = self.check_descriptors
        context.on_drained = partial(self._end, CANCEL_TIMEOUT)
        context.loop.set_exception_handler(self._loop_failed)
        self.executors: dict[WorkerService, Executor] = {}  # of services whose handlers block
        self._inodes: list[tuple[WorkerService, socket.socket, int]] = []  # to identify listeners
        self._has_drain_timeout = False
        self._ending: asyncio.Task[None] | None = None
        self._is_over = False
        self._own_descriptors = 0
        self._next_check = 0  # which listener is checked next
        self._shown: dict[str, Rows] = {}

    def add(self, service: WorkerService, executor: Executor | None = None) -> None:
        """Serve a service. `executor` runs its handlers if they block."""
        self.context.services.append(service)
        self.context.heartbeat.add(service)
        if executor is not None:
            self.executors[service] = executor

    def listen(self, service: WorkerService, address: Address, sock: socket.socket) -> None:
        """Serve one of the service's sockets, also while the loop runs already."""
        if self.context.is_draining:
            sock.close()
            return
        self._inodes.append((service, sock, os.fstat(sock.fileno()).st_ino))
        executor = self.executors.get(service)
        served = served_socket(self.context, service, address, sock, executor)
        self.context.sockets.append(served)
        if isinstance(served, Acceptor):
            service.acceptors.append(served)
        if self.context.loop.is_serving:
            self._own_descriptors += 1
            served.start()

    def become_copy(self) -> None:
        """Leave signals, polling and listeners to the worker, and exit once control returns to the
        loop. Called in each process that is forked; does nothing where superd itself forks.
        """
        context = self.context
        if context.is_forking or context.is_copy:
            return
        context.is_copy = True
        leave_parents_signals()
        if isinstance(context.loop, PollingLoop):
            context.loop.selector.leave()
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
        loop.call_later(FLUSH_INTERVAL, self._flush)
        Timeouts(context).start()
        loop.is_serving = True
        context.heartbeat.start(context.flood_gate, context.connections)
        while not self._is_over:
            try:
                loop.run_forever()
            except MemoryError:  # memory may become free again
                self._report_memory_shortage()
            except Exception:
                raise  # the loop itself is broken, so the master has to start another worker
            except BaseException as error:  # noqa: BLE001  SystemExit from a plugin's own task
                record = failure("a plugin tried to end the worker", error)
                context.flood_gate.report(("loop", *kind_of(error)), record)
        context.heartbeat.stop()
        for executor in self.executors.values():
            executor.kill_all()
        for _ in range(2):  # also those that have just failed
            self._report_failed_tasks()
        context.flood_gate.flush()
        for service in context.services:
            service.records.end_window()
        context.connection_log.flush()

    def renew_processes(self) -> None:
        """Replace processes that wait for connections, as files of plugins were reopened."""
        for executor in self.executors.values():
            executor.renew()

    def _report_memory_shortage(self) -> None:
        try:
            record = Record("error", "the worker is short of memory")
            self.context.flood_gate.report(("memory",), record)
        except MemoryError:
            pass

    def retire(self) -> None:
        """Stop accepting, since workers of the next generation accept. End with the last
        connection, or after reload-drain-timeout if the configuration sets one. Plugins keep the
        listeners that they have, except those that `release` ends.
        """
        if not self.context.is_draining:
            self._stop_accepting()
            if timeout := self.context.retire_timeout:
                self.context.loop.call_later(timeout, self._cut, "reload-drain-timeout")

    def release(self, services: Collection[str]) -> list[asyncio.Task[None]]:
        """Retire, and end the plugins that have listeners of these services, since their entries
        are gone or changed; return the tasks that end.
        """
        self.retire()
        return self._take_back(one for one in self._handoffs if one.service.name in services)

    def drain(self) -> None:
        """Stop accepting, also by plugins that have a listener. End with the last connection, or
        after drain-timeout.
        """
        if not self._has_drain_timeout:
            self._has_drain_timeout = True
            self.context.loop.call_later(self.context.drain_timeout, self._cut, "drain-timeout")
            if not self.context.is_draining:
                self._stop_accepting()
            self._take_back(one for one in self._handoffs if one.waits)

    def drain_without_master(self) -> None:
        """Drain, and free every address for the next master, since this one has died."""
        self.drain()
        self._take_back(self._handoffs)

    @property
    def _handoffs(self) -> list[ListenerHandoff]:
        return [one for one in self.context.sockets if isinstance(one, ListenerHandoff)]

    def _take_back(self, handoffs: Iterable[ListenerHandoff]) -> list[asyncio.Task[None]]:
        """End the plugins that have these sockets; return the tasks that end."""
        return [task for handoff in handoffs for task in handoff.cancel(End.DRAIN)]

    def _stop_accepting(self) -> None:
        self.context.is_draining = True
        for served in self.context.sockets:
            served.stop()
        self.context.tarpit.close_all()
        self.context.end_if_drained()

    def stop(self) -> None:
        """Close all connections, and end as soon as tasks and programs have."""
        for served in self.context.sockets if not self.context.is_draining else ():
            served.stop()
        self.context.is_draining = True
        self._expire_all()
        self._end(CANCEL_TIMEOUT)

    def _cut(self, limit: str) -> None:
        if number := len(self.context.connections) + self.context.held:
            message = f"{number} connections cut at the end of {limit}"
            self.context.report(Record("warning", message))
        self._expire_all()
        self.context.loop.call_later(CANCEL_TIMEOUT, self._end, SECOND_CANCEL_TIMEOUT)

    def _end(self, timeout: float) -> None:
        """Stop the loop once the remaining tasks of plugins have ended as well."""
        if self._ending is None:
            self._ending = self.context.loop.create_task(self._end_tasks(timeout))

    async def _end_tasks(self, timeout: float) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            if not task.cancelling():  # a second cancellation would interrupt its cleaning up
                task.cancel()
        ended, running = await asyncio.wait(tasks, timeout=timeout) if tasks else (tasks, ())
        for task in running:
            service, place = self.context.heartbeat.owner_of(task.get_stack())
            text = f"a task was cancelled and has not ended within {timeout:g} s, {place}"
            self.context.report(Record("warning", text, service=service))
        for task in ended:
            if not task.cancelled() and (error := task.exception()) is not None:
                context = {"message": "a task failed as it was cancelled", "exception": error}
                self._loop_failed(self.context.loop, context)
        self._is_over = True
        self.context.loop.is_serving = False
        self.context.loop.stop()

    def check_listeners(self, first: int = 0, last: int | None = None) -> None:
        """Stop if a plugin has closed a listener, or has put another file in its place.

        The loop could never release the listener's descriptor. The master still has the listener
        open, and starts another worker.
        """
        for service, sock, inode in (
            self._inodes[first:last] if not self.context.is_draining else ()
        ):
            if not _has_inode(sock, inode):
                message = "a plugin closed a listener that superd owns; the worker ends"
                self.context.report(Record("error", message, service=service.name))
                self.context.sockets = []
                for each in self.context.services:
                    each.acceptors.clear()
                self.stop()
                return

    def check_descriptors(self) -> None:
        """Free descriptors after EMFILE: drop the tarpit and half of the lingering sockets. If
        plugins have leaked most descriptors, drain, so that the master starts another worker.
        """
        context = self.context
        clients = len(context.connections) + len(context.lingering) + len(context.tarpit)
        leaked = descriptors.leaked(self._own_descriptors, clients)
        context.tarpit.close_all()
        context.lingering.close_half()
        if leaked and not context.is_draining:
            message = f"plugins have leaked {leaked} descriptors; the worker drains and is replaced"
            context.report(Record("error", message))
            self.drain()

    def watch_status(self, send: Callable[[str, Rows], None]) -> None:
        """Send what services show of their state, now and whenever it has changed."""
        self.context.loop.call_later(STATUS_INTERVAL, self.watch_status, send)
        for service in self.context.services:
            try:
                rows = fitting(service.scope.run(service.plugin.status))
            except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
                message = f"plugin {service.plugin.name} failed in status"
                record = failure(message, error, service=service.name)
                count_failure(self.context, service, record, *kind_of(error))
                continue
            if rows != self._shown.get(service.name, []):
                self._shown[service.name] = rows
                send(service.name, rows)

    def _flush(self) -> None:
        # first, as the rest may run out of memory
        self.context.loop.call_later(FLUSH_INTERVAL, self._flush)
        self.context.heartbeat.beat()
        self._report_failed_tasks()
        self.context.flood_gate.flush()
        self.context.tend_output()
        for service in self.context.services:
            service.records.end_window()
        first = self._next_check if self._next_check < len(self._inodes) else 0
        self._next_check = first + MAX_CHECKED_LISTENERS
        self.check_listeners(first, self._next_check)

    def _report_failed_tasks(self) -> None:
        loop = self.context.loop
        for name, error in loop.failed_tasks():
            context = {"message": f"task {name} failed, and no code awaits it", "exception": error}
            self._loop_failed(loop, context)

    def _expire_all(self) -> None:
        self._take_back(self._handoffs)
        for session in list(self.context.connections.values()):
            session.expire(End.DRAIN)

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report what a task or callback of a plugin raised, where no code awaits its result."""
        error = context.get("exception")
        message = str(context.get("message") or "an error in the event loop")
        gate = self.context.flood_gate
        if isinstance(error, BaseException):
            frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
            service, _ = self.context.heartbeat.owner_of(frames)
            gate.report(("loop", *kind_of(error)), failure(message, error, service=service))
        else:
            gate.report(("loop", message), Record("error", message))


def _has_inode(sock: socket.socket, inode: int) -> bool:
    try:
        return os.fstat(sock.fileno()).st_ino == inode
    except OSError:
        return False
