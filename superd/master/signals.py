"""Signals: resets inherited dispositions, and queues the signals that the master handles.

Runs in the command line and the master. A handler does nothing: Python writes the number to a pipe,
which the master's loop reads. Raises nothing.
"""

from __future__ import annotations

import os
import select
import signal
import sys

HANDLED_SIGNALS = (
    signal.SIGTERM, signal.SIGINT, signal.SIGQUIT,
    signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD,
)  # fmt: skip
PIPE_CAPACITY = 65536  # signals, one byte each (pipe(7))


def reset_inherited() -> None:
    """Unblock signals and make children waitable again: superd may have been started otherwise."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def end_on_term() -> None:
    """Make TERM raise SystemExit until the master catches signals, so that superd cleans up.

    Process 1 of a container would ignore TERM otherwise: it has no default action (signal(7)).
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


class Signals:
    """A queue of signals, which a selector can wait for.

    It has room for 65,536 signals, so a flood of one signal does not displace another.
    """

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in HANDLED_SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def fileno(self) -> int:
        return self._reader

    @property
    def are_pending(self) -> bool:
        """Whether a signal has not been taken yet."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        return bool(poll.poll(0))

    def take(self) -> list[int]:
        """Empty the queue; return each signal once, in order; two TERM become a TERM and an INT."""
        try:
            numbers = os.read(self._reader, PIPE_CAPACITY)
        except BlockingIOError:
            return []
        again = numbers.count(signal.SIGTERM) > 1
        return list(dict.fromkeys([*numbers, *([signal.SIGINT] if again else [])]))
