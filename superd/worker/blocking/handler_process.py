"""A process that a worker has forked for blocking handlers.

Runs in that process only, confined as its worker is, without an event loop. Keeps no descriptor of
the worker except its channel to the worker, the one to the log, and what plugins have opened in
`prepare`. Its title names its client. Contains whatever a handler raises: the process reports the
result, or exits.
"""

from __future__ import annotations

import array
import errno
import gc
import json
import marshal
import math
import os
import signal
import socket
import sys
from collections.abc import Collection
from contextlib import suppress
from typing import Any, NoReturn

from setproctitle import setproctitle

from superd.net.addresses import Transport
from superd.net.passing import ONE_DESCRIPTOR_BYTES
from superd.observe.records import Record, encoded
from superd.process import capabilities
from superd.process.confinement import end_of_descriptors
from superd.process.forking import leave_parents_signals
from superd.worker.blocking.connection import (
    SUCCESS,
    ClientInfo,
    HandlerConnection,
    HandlerResult,
    run_handler,
)
from superd.worker.channel import Channel
from superd.worker.runtime.accounting import endpoint_text
from superd.worker.runtime.output import serving
from superd.worker.runtime.service import WorkerService

DONE = b"done"  # the handler has returned, without an outcome
ABORTED = b"aborted"
ORPHANED = signal.SIGUSR2  # the kernel sends it when the worker has ended
MAX_MESSAGE_SIZE = 64 * 1024  # bytes, in either direction


def message_of(result: HandlerResult) -> bytes:
    """Return the message with which a process reports the result of a handler."""
    if result == SUCCESS:
        return DONE
    content = result._asdict()
    if result.failure is not None:
        content["failure"] = encoded(result.failure)
    message = json.dumps(content).encode("ascii")
    if len(message) > MAX_MESSAGE_SIZE and result.failure is not None:
        content["failure"]["detail"] = []
        message = json.dumps(content).encode("ascii")
    return message


def result_of(message: bytes) -> HandlerResult:
    """Return the result in a message of `message_of`; ValueError, TypeError or KeyError if the
    message is invalid.
    """
    if message == DONE:
        return SUCCESS
    content: dict[str, Any] = json.loads(message)
    if (failure := content["failure"]) is not None:
        content["failure"] = Record(**{**failure, "detail": tuple(failure["detail"])})
    return HandlerResult(**content)


class HandlerProcess:
    """This process: its socket to the worker, and the tally that it shares with the worker."""

    def __init__(
        self,
        service: WorkerService,
        tally: memoryview,
        worker_sock: socket.socket,
        channel: Channel,
        kept: Collection[int],
        worker: int,
        drain_timeout: float,
    ) -> None:
        self.service = service
        self.tally = tally
        self.worker_sock = worker_sock
        self.channel = channel
        self.pid = os.getpid()
        serving.set(service.name)
        leave_parents_signals()  # resetting all would take as long as half a fork
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        self._limit_orphan(worker, drain_timeout)
        gc.freeze()  # garbage of the worker would close numbers that belong to the handler by then
        os.setsid()  # so that what a handler forks can be killed with it
        _close_all_but({0, 1, 2, worker_sock.fileno(), channel.sock.fileno(), *kept})

    def _limit_orphan(self, worker: int, drain_timeout: float) -> None:
        """Exit `drain_timeout` seconds after the worker has ended: its time-outs end with it."""

        def orphaned(*_: object) -> None:
            signal.alarm(math.ceil(drain_timeout) or 1)

        signal.signal(ORPHANED, orphaned)
        if sys.platform == "linux":
            capabilities.set_parent_death_signal(ORPHANED)
        if os.getppid() != worker:
            orphaned()

    def serve_one(self, client: ClientInfo, sock: socket.socket) -> NoReturn:
        """Serve the connection that this process was forked for, and exit."""
        self._serve(client, sock)
        self.exit()

    def serve_many(self) -> NoReturn:
        """Serve the connections that the worker sends, until it closes its socket."""
        while True:
            setproctitle(f"superd: {self.service.name} idle")
            data, passed, *_ = self.worker_sock.recvmsg(MAX_MESSAGE_SIZE, ONE_DESCRIPTOR_BYTES)
            if not data:
                self.exit()
            (descriptor,) = array.array("i", passed[0][2])
            family, kind, *client = marshal.loads(data)  # noqa: S302  from the worker itself
            sock = socket.socket(family, kind, fileno=descriptor)
            self._serve(ClientInfo(*client), sock)

    def _serve(self, client: ClientInfo, sock: socket.socket) -> None:
        where = endpoint_text(Transport(client.kind), client.sockaddr)
        setproctitle(f"superd: {self.service.name} {where}")
        conn = HandlerConnection(
            client, self.service.name, sock, self.tally, self.channel.log, self._report_abort
        )
        assert self.service.blocking is not None
        result = run_handler(self.service.blocking, conn, self.service.plugin.name)
        if os.getpid() != self.pid:  # the handler has forked, and returned in both processes
            if result.failure is not None:
                self.channel.log(result.failure)
            os._exit(0)
        if not _has_descriptors():
            result = result._replace(is_spent=True)
        conn.close_socket()
        self._send(message_of(result))

    def _report_abort(self) -> None:
        self._send(ABORTED)

    def _send(self, message: bytes) -> None:
        try:
            self.worker_sock.send(message)
        except OSError:  # the worker has ended, or its queue is full: it sees this exit
            os._exit(1)

    def exit(self) -> NoReturn:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(0)


def _has_descriptors() -> bool:
    """Return whether handlers have left a descriptor for the next connection."""
    try:
        os.close(os.dup(0))
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    return True


def _close_all_but(kept: Collection[int]) -> None:
    """Close every descriptor except these; closerange is one system call for each gap, or one for
    each number where the kernel has no close_range(2) or a filter refuses it.
    """
    first, last = 0, end_of_descriptors()
    for number in sorted(kept):
        if first < number:  # an empty range would close every descriptor
            os.closerange(first, number)
        first = number + 1
    if first < last:
        os.closerange(first, last)
