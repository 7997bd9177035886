"""Signals in a process that was forked: the parent's handlers are not its own.

Runs in the worker and in processes that are thrown away, right after the fork. Never raises.
"""

from __future__ import annotations

import contextlib
import signal


def reset_signals() -> None:
    """Forget the parent's handlers, then let signals in; those of a terminal are ignored.

    A terminal sends its signals to the whole process group: the master decides what they mean.
    """
    signal.set_wakeup_fd(-1)
    ignored = {signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
    ignored |= {signal.SIGPIPE, signal.SIGXFSZ}  # as Python has it: an OSError tells of them
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
