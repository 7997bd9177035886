"""Signals: what whoever started superd left of them, and those that the master has asked for.

Runs in the command line and the master. A handler does nothing; the numbers come through a pipe
that the master's loop reads. Never raises.
"""

from __future__ import annotations

import os
import select
import signal
import sys

CAUGHT = (
    signal.SIGTERM, signal.SIGINT, signal.SIGQUIT,
    signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD,
)  # fmt: skip
ROOM = 65536


def reset_inherited() -> None:
    """Let signals in and children be waited for: superd may be started with neither."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def end_on_term() -> None:
    """Until the master catches signals, TERM ends superd as an exception, so that it tidies up.

    As process 1 of a container it would not end it at all: that one has no default (signal(7)).
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


class Signals:
    """The signals that have come since the last look; a selector can wait for the next one.

    A pipe has room for 65,536 of them, so a flood of one kind does not drown another.
    """

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in CAUGHT:
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def fileno(self) -> int:
        return self._reader

    @property
    def are_pending(self) -> bool:
        """Whether any has come that was not taken yet."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        return bool(poll.poll(0))

    def taken(self) -> list[int]:
        """Return each signal that has come, once, in order; two TERM are a TERM and an INT."""
        try:
            numbers = os.read(self._reader, ROOM)
        except BlockingIOError:
            return []
        again = numbers.count(signal.SIGTERM) > 1
        return list(dict.fromkeys([*numbers, *([signal.SIGINT] if again else [])]))
