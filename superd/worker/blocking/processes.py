"""Blocking handlers in processes: `model = "fork"` and `model = "prefork"`.

Runs in the worker, on the loop, which accepts and admits for them. A process has at most one
connection; the worker keeps a copy of its socket, so that a handler that crashes resets its client
and one that returns loses no answer. Raises OSError for a fork that fails.
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
from superd.worker.blocking.child import ABORTED, LARGEST, Child, account_of_message
from superd.worker.blocking.connection import CELLS, Cell
from superd.worker.blocking.session import PAUSE, BlockingSession, Executor
from superd.worker.channel import Channel
from superd.worker.runtime.context import Context
from superd.worker.runtime.service import WorkerService


class Process:
    """The worker's record of one process, from the fork until it is reaped."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, pid: int, line: socket.socket, tally: memoryview
    ) -> None:
        self.pid = pid
        self.line = line
        self.tally = tally
        self.session: BlockingSession | None = None
        self.served = 0
        self.is_spent = False  # it is to serve nobody else
        self.pidfd = os.pidfd_open(pid)
        self._loop = loop

    def watch(self, heard: Callable[[], object], ended: Callable[[], object]) -> None:
        self._loop.add_reader(self.line, heard)
        self._loop.add_reader(self.pidfd, ended)

    def hear(self) -> None:
        """Take what it tells of its connection."""
        while self.line.fileno() >= 0:
            try:
                message = self.line.recv(LARGEST)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._loop.remove_reader(self.line)
                return
            session = self.session
            if message == ABORTED and session is not None:
                session.abort()
            elif session is not None:
                self.session = None
                try:
                    account = account_of_message(message)
                    self.is_spent = account.is_spent
                    session.ended(account)
                except (ValueError, TypeError, KeyError):
                    session.died("sent what is no account")

    def forget_last(self) -> None:
        """Count anew, for another connection."""
        for cell in Cell:
            self.tally[cell] = 0

    def hang_up(self) -> None:
        """Let it end once it has served."""
        if self.line.fileno() >= 0:
            self._loop.remove_reader(self.line)
            self.line.close()

    def kill(self) -> None:
        """End it, with all that its handler has started; called only until it is reaped."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self.pid, signal.SIGKILL)  # it may not have a group of its own yet

    def reap(self) -> str:
        """Return how it ended; its line and its descriptor are closed."""
        self.hear()
        self._loop.remove_reader(self.pidfd)
        os.close(self.pidfd)
        self.hang_up()
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            return "has gone"
        return describe_exit(os.waitstatus_to_exitcode(status))


class ForkExecutor(Executor):
    """A process for each connection, forked when it comes."""

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

        def work(child: Child) -> NoReturn:
            child.serve_one(session.caller, sock)

        process = self._fork(work, [sock.fileno()])
        process.session = session
        session.tally = process.tally
        return process.kill

    def _fork(self, work: Callable[[Child], NoReturn], passed: Collection[int] = ()) -> Process:
        """Return a new process that does `work`; it keeps the descriptors `passed`."""
        tally = memoryview(mmap.mmap(-1, CELLS * 8)).cast("Q")
        worker = os.getpid()

        def main(line: socket.socket) -> NoReturn:
            try:
                kept = {*self._kept, *passed}
                child = Child(
                    self.service,
                    tally,
                    line,
                    self._channel,
                    kept,
                    worker,
                    self.context.drain_timeout,
                )
                work(child)
            except BaseException as error:  # noqa: BLE001  it goes no further than this process
                what = "a process of its own failed"
                self._channel.log(failure(what, error, service=self.service.name))
                os._exit(1)

        self.context.is_forking = True
        try:
            pid, line = fork_child(main)
        finally:
            self.context.is_forking = False
        try:
            process = Process(self.context.loop, pid, line, tally)
        except OSError:  # no descriptor is left to watch it by
            line.close()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self.processes.add(process)
        process.watch(partial(self._heard, process), partial(self._ended, process))
        return process

    def _heard(self, process: Process) -> None:
        process.hear()

    def _ended(self, process: Process) -> None:
        how = process.reap()
        self.processes.discard(process)
        if process.session is not None:
            process.session.died(how)

    def end_all(self) -> None:
        for process in self.processes:
            process.kill()


class PreforkExecutor(ForkExecutor):
    """As many processes as `processes` of the entry says, which wait for connections; each is
    replaced after `max-requests`.
    """

    def __init__(
        self, context: Context, service: WorkerService, channel: Channel, kept: Collection[int]
    ) -> None:
        super().__init__(context, service, channel, kept)
        self._retry: asyncio.TimerHandle | None = None
        self.idle: list[Process] = []  # the one that served last is the next: its memory is warm

    @property
    def is_full(self) -> bool:
        return not self.idle

    def start(self) -> None:
        """Fork until there are enough."""
        while len(self.processes) < self.service.entry.processes:
            try:
                self.idle.append(self._fork(Child.serve_many))
            except OSError as error:
                text = f"cannot start a process: {reason(error)}"
                record = Record("error", text, self.service.name)
                self.context.flood_gate.report((self.service.name, error.errno), record)
                self._start_later()
                return

    def _start_later(self) -> None:
        if self._retry is None:
            self._retry = self.context.loop.call_later(PAUSE, self._start_again)

    def _start_again(self) -> None:
        self._retry = None
        self.start()
        self.service.resume()

    def serve(self, session: BlockingSession) -> Callable[[], None]:
        sock = session.sock
        assert sock is not None
        data = marshal.dumps((int(sock.family), int(sock.type), *session.caller))
        passed = rights_for(sock)
        while self.idle:
            process = self.idle.pop()
            session.tally = process.tally
            process.forget_last()
            try:
                process.line.sendmsg([data], passed)
            except (BrokenPipeError, ConnectionResetError):
                continue  # it has just died, and will be replaced
            except OSError:
                self.idle.append(process)  # too many sockets are under way just now (unix(7))
                raise
            process.session = session
            process.served += 1
            return process.kill
        raise OSError(errno.ECHILD, "its processes have gone")

    def _heard(self, process: Process) -> None:
        had_session = process.session is not None
        process.hear()
        if had_session and process.session is None:
            self._has_served(process)

    def _has_served(self, process: Process) -> None:
        most = self.service.entry.max_requests
        if process.is_spent or (most and process.served >= most):
            process.hang_up()
        else:
            self.idle.append(process)

    def _ended(self, process: Process) -> None:
        if process in self.idle:
            self.idle.remove(process)
        super()._ended(process)
        if process.served:
            self.start()
            self.service.resume()
        else:
            self._start_later()
