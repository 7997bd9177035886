"""Blocking handlers in processes: `model = "fork"` and `model = "prefork"`.

Runs in the worker, on the loop, which accepts and admits for them. A process has at most one
connection. The worker keeps a copy of its socket, so that the client sees a reset if the handler
crashes, and loses no answer if it returns. Raises OSError for a fork that fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import marshal
import mmap
import os
import signal
import socket
from collections.abc import Callable, Collection
from functools import partial
from typing import NoReturn

from superd.errors import reason
from superd.net.passing import rights_for
from superd.observe.records import Record, failure
from superd.process.forking import describe_exit, fork_child
from superd.worker.blocking.connection import TALLY_SIZE, TallyCell
from superd.worker.blocking.handler_process import (
    ABORTED,
    MAX_MESSAGE_SIZE,
    HandlerProcess,
    result_of,
)
from superd.worker.blocking.session import START_RETRY_INTERVAL, BlockingSession, Executor
from superd.worker.channel import Channel
from superd.worker.runtime.context import Context
from superd.worker.runtime.service import WorkerService


class Process:
    """The worker's record of one process, from the fork until it is reaped."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, pid: int, sock: socket.socket, tally: memoryview
    ) -> None:
        self.pid = pid
        self.sock = sock
        self.tally = tally
        self.session: BlockingSession | None = None
        self.served = 0
        self.is_spent = False  # it can serve no other connection
        self.is_outdated = False  # it has copies of files that were reopened since
        self.pidfd = os.pidfd_open(pid)
        self._loop = loop

    def watch(self, on_message: Callable[[], object], on_end: Callable[[], object]) -> None:
        """Call `on_message` when it has sent a message, and `on_end` when it has ended."""
        self._loop.add_reader(self.sock, on_message)
        self._loop.add_reader(self.pidfd, on_end)

    def receive(self) -> None:
        """Act on its messages about its connection."""
        while self.sock.fileno() >= 0:
            try:
                message = self.sock.recv(MAX_MESSAGE_SIZE)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._loop.remove_reader(self.sock)
                return
            session = self.session
            if message == ABORTED and session is not None:
                session.abort()
            elif session is not None:
                self.session = None
                try:
                    result = result_of(message)
                    self.is_spent = result.is_spent
                    session.ended(result)
                except (ValueError, TypeError, KeyError):
                    session.died("sent an invalid result")

    def reset_tally(self) -> None:
        """Count from 0 for the next connection."""
        for cell in TallyCell:
            self.tally[cell] = 0

    def close(self) -> None:
        """Close its socket, so that it exits once it is idle."""
        if self.sock.fileno() >= 0:
            self._loop.remove_reader(self.sock)
            self.sock.close()

    def kill(self) -> None:
        """Kill it, with all that its handler has started. Called only until it is reaped."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self.pid, signal.SIGKILL)  # it may not have a group of its own yet

    def reap(self) -> str:
        """Reap it and close its descriptors; return how it ended."""
        self.receive()
        self._loop.remove_reader(self.pidfd)
        os.close(self.pidfd)
        self.close()
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            return "was reaped elsewhere"
        return describe_exit(os.waitstatus_to_exitcode(status))


class ForkExecutor(Executor):
    """A process for each connection, forked once it is accepted."""

    def __init__(
        self, context: Context, service: WorkerService, channel: Channel, kept: Collection[int]
    ) -> None:
        self.context = context
        self.service = service
        self.processes: set[Process] = set()
        self._channel = channel
        self._kept = kept

    @property
    def is_full(self) -> bool:
        return False

    def serve(self, session: BlockingSession) -> Callable[[], None]:
        sock = session.sock
        assert sock is not None

        def work(child: HandlerProcess) -> NoReturn:
            child.serve_one(session.client, sock)

        process = self._fork(work, [sock.fileno()])
        process.session = session
        session.tally = process.tally
        return process.kill

    def _fork(
        self, work: Callable[[HandlerProcess], NoReturn], passed: Collection[int] = ()
    ) -> Process:
        """Return a new process that runs `work` and keeps the descriptors `passed`."""
        tally = memoryview(mmap.mmap(-1, TALLY_SIZE)).cast("Q")
        worker = os.getpid()

        def main(parent: socket.socket) -> NoReturn:
            try:
                kept = {*self._kept, *passed}
                child = HandlerProcess(
                    self.service,
                    tally,
                    parent,
                    self._channel,
                    kept,
                    worker,
                    self.context.drain_timeout,
                )
                work(child)
            except BaseException as error:  # noqa: BLE001  no exception leaves this process
                what = "a handler's process failed"
                self._channel.log(failure(what, error, service=self.service.name))
                os._exit(1)

        self.context.is_forking = True
        try:
            pid, sock = fork_child(main)
        finally:
            self.context.is_forking = False
        try:
            process = Process(self.context.loop, pid, sock, tally)
        except OSError:  # no descriptor is free for watching it
            sock.close()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self.processes.add(process)
        process.watch(partial(self._receive, process), partial(self._ended, process))
        return process

    def _receive(self, process: Process) -> None:
        process.receive()

    def _ended(self, process: Process) -> None:
        how = process.reap()
        self.processes.discard(process)
        if process.session is not None:
            process.session.died(how)

    def kill_all(self) -> None:
        for process in self.processes:
            process.kill()


class PreforkExecutor(ForkExecutor):
    """`processes` of the entry, which wait for connections. Each is replaced after `max-requests`
    connections.
    """

    def __init__(
        self, context: Context, service: WorkerService, channel: Channel, kept: Collection[int]
    ) -> None:
        super().__init__(context, service, channel, kept)
        self._retry_timer: asyncio.TimerHandle | None = None
        self.idle: list[Process] = []  # the last one is used next: its memory is warm

    @property
    def is_full(self) -> bool:
        return not self.idle

    def start(self) -> None:
        """Fork the processes that are missing."""
        while len(self.processes) < self.service.entry.processes:
            try:
                self.idle.append(self._fork(HandlerProcess.serve_many))
            except OSError as error:
                text = f"cannot start a process: {reason(error)}"
                record = Record("error", text, self.service.name)
                self.context.flood_gate.report((self.service.name, error.errno), record)
                self._start_later()
                return

    def _start_later(self) -> None:
        if self._retry_timer is None:
            self._retry_timer = self.context.loop.call_later(
                START_RETRY_INTERVAL, self._start_again
            )

    def _start_again(self) -> None:
        self._retry_timer = None
        self.start()
        self.service.resume()

    def serve(self, session: BlockingSession) -> Callable[[], None]:
        sock = session.sock
        assert sock is not None
        data = marshal.dumps((int(sock.family), int(sock.type), *session.client))
        passed = rights_for(sock)
        while self.idle:
            process = self.idle.pop()
            session.tally = process.tally
            process.reset_tally()
            try:
                process.sock.sendmsg([data], passed)
            except (BrokenPipeError, ConnectionResetError):
                continue  # it has just died, and will be replaced
            except OSError:
                self.idle.append(process)  # too many sockets are in flight (unix(7))
                raise
            process.session = session
            process.served += 1
            return process.kill
        raise OSError(errno.ECHILD, "all its processes have ended")

    def renew(self) -> None:
        old, self.idle = self.idle, []
        for process in self.processes:
            process.is_outdated = True
        for process in old:
            process.close()

    def _receive(self, process: Process) -> None:
        had_session = process.session is not None
        process.receive()
        if had_session and process.session is None:
            self._has_served(process)

    def _has_served(self, process: Process) -> None:
        limit = self.service.entry.max_requests
        if process.is_spent or process.is_outdated or (limit and process.served >= limit):
            process.close()
        else:
            self.idle.append(process)

    def _ended(self, process: Process) -> None:
        if process in self.idle:
            self.idle.remove(process)
        super()._ended(process)
        if process.served or process.is_outdated:
            self.start()
            self.service.resume()
        else:
            self._start_later()
