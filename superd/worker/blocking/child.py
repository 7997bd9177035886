"""What a process does that a worker forked for blocking handlers.

Runs in that process only, confined as its worker was, without an event loop. Keeps no descriptor of
the worker's but its line there, the one to the log, and what plugins have opened in `prepare`. Its
title tells whom it serves. Whatever a handler does ends here: the process ends, or tells.
"""

from __future__ import annotations

import array
import errno
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
from superd.worker.blocking.connection import (
    ALL_WELL,
    Account,
    Caller,
    HandlerConnection,
    account_of,
)
from superd.worker.channel import Channel
from superd.worker.runtime.accounting import endpoint_text
from superd.worker.runtime.service import WorkerService

DONE = b"done"  # all went well, and there is nothing to tell
ABORTED = b"aborted"
ORPHANED = signal.SIGUSR2
LARGEST = 64 * 1024  # bytes of a message either way


def account_message(account: Account) -> bytes:
    """Return what a process tells its worker of how a handler ended."""
    if account == ALL_WELL:
        return DONE
    told = account._asdict()
    if account.failure is not None:
        told["failure"] = encoded(account.failure)
    message = json.dumps(told).encode("ascii")
    if len(message) > LARGEST and account.failure is not None:
        told["failure"]["detail"] = []
        message = json.dumps(told).encode("ascii")
    return message


def account_of_message(message: bytes) -> Account:
    """Return what `account_message` was made of; ValueError, TypeError or KeyError for others."""
    if message == DONE:
        return ALL_WELL
    told: dict[str, Any] = json.loads(message)
    if told["failure"] is not None:
        told["failure"] = Record(**{**told["failure"], "detail": tuple(told["failure"]["detail"])})
    return Account(**told)


class Child:
    """The process: its line to the worker, and the tally that it shares with it."""

    def __init__(
        self,
        service: WorkerService,
        tally: memoryview,
        line: socket.socket,
        channel: Channel,
        kept: Collection[int],
        worker: int,
        patience: float,
    ) -> None:
        self.service = service
        self.tally = tally
        self.line = line
        self.channel = channel
        self.pid = os.getpid()
        _forget_handlers()
        self._outlive(worker, patience)
        os.setsid()  # so that what a handler forks can be ended with it
        _close_all_but({0, 1, 2, line.fileno(), channel.sock.fileno(), *kept})

    def _outlive(self, worker: int, patience: float) -> None:
        """Once the worker has gone, nobody bounds the time of a connection but a timer, in s."""

        def orphaned(*_: object) -> None:
            signal.alarm(math.ceil(patience) or 1)

        signal.signal(ORPHANED, orphaned)
        if sys.platform == "linux":
            capabilities.set_parent_death_signal(ORPHANED)
        if os.getppid() != worker:
            orphaned()

    def serve_one(self, caller: Caller, sock: socket.socket) -> NoReturn:
        """Serve the connection that this process was forked for, and end."""
        self._serve(caller, sock)
        self.exit()

    def serve_many(self) -> NoReturn:
        """Serve one connection after another, as the worker sends them, until it hangs up."""
        while True:
            setproctitle(f"superd: {self.service.name} idle")
            data, passed, *_ = self.line.recvmsg(LARGEST, ONE_DESCRIPTOR_BYTES)
            if not data:
                self.exit()
            (descriptor,) = array.array("i", passed[0][2])
            family, kind, *caller = marshal.loads(data)  # noqa: S302  from the worker itself
            sock = socket.socket(family, kind, fileno=descriptor)
            self._serve(Caller(*caller), sock)

    def _serve(self, caller: Caller, sock: socket.socket) -> None:
        where = endpoint_text(Transport(caller.kind), caller.sockaddr)
        setproctitle(f"superd: {self.service.name} {where}")
        talk = HandlerConnection(
            caller, self.service.name, sock, self.tally, self.channel.log, self._tell_aborted
        )
        assert self.service.blocking is not None
        account = account_of(self.service.blocking, talk, self.service.plugin.name)
        if os.getpid() != self.pid:  # a handler has forked, and both came back
            if account.failure is not None:
                self.channel.log(account.failure)
            os._exit(0)
        if not _has_descriptors():
            account = account._replace(is_spent=True)
        talk.let_go()
        self._tell(account_message(account))

    def _tell_aborted(self) -> None:
        self._tell(ABORTED)

    def _tell(self, message: bytes) -> None:
        try:
            self.line.send(message)
        except OSError:  # the worker has gone, or cannot hear it: the end of the process tells it
            os._exit(1)

    def exit(self) -> NoReturn:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(0)


def _has_descriptors() -> bool:
    """Tell whether a handler has left enough of them for the next connection."""
    try:
        os.close(os.dup(0))
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    return True


def _forget_handlers() -> None:
    """Forget the worker's handlers, of three signals, and let signals in; the rest is as it should
    be, and to set all of them anew would take as long as half a fork.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _close_all_but(kept: Collection[int]) -> None:
    """Close every descriptor but these: closerange is one system call for each gap."""
    first = 0
    for number in sorted(kept):
        if first < number:  # an empty range would be every descriptor that there is
            os.closerange(first, number)
        first = number + 1
    os.closerange(first, 1 << 30)
