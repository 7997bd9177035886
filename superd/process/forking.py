"""Forks a process that has a line to its parent.

Runs in the master, for its workers, and in workers whose services fork. Raises OSError for a fork
that fails.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import NoReturn


def fork_child(main: Callable[[socket.socket], NoReturn]) -> tuple[int, socket.socket]:
    """Fork a process that runs `main(line)`; return its pid and the parent's end of the line.

    Signals stay blocked until the child has forgotten the parent's handlers.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            try:
                main(theirs)
            finally:
                os._exit(1)
    except OSError:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
    return pid, ours


def describe_exit(code: int) -> str:
    """Return an exit code, negative for a signal, in words."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # most real-time signals have no name
        return f"was ended by signal {-code}"


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
