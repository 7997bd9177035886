"""Forks a child process that is connected to its parent by a socket pair.

Runs in the master, which forks workers and the resolver, and in workers, which fork processes for
services. `reset_signals` runs in the children. The command line forks with signals blocked, too.
Raises OSError if the fork fails.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

HANDLED_BY_WORKERS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGALRM)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block all signals where what their handlers raise could be lost.

    Python only prints it in the functions that it calls after a fork (os.register_at_fork), and a
    library may turn it into an error of its own.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextlib.contextmanager
def signals_unblocked() -> Iterator[None]:
    """Deliver signals during a wait, even where they are blocked."""
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def fork_child(main: Callable[[socket.socket], NoReturn]) -> tuple[int, socket.socket]:
    """Fork a process that runs `main` with its end of a socket pair; return its pid and the other
    end.

    Signals are blocked in the child until it calls `reset_signals`.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    try:
        with signals_blocked():
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
        theirs.close()
    return pid, ours


def leave_parents_signals() -> None:
    """Reset the signals that a worker handles, in a process that was forked from it.

    Else a signal to this process would not end it, and would reach the worker's loop through the
    descriptor that both share (signal.set_wakeup_fd).
    """
    signal.set_wakeup_fd(-1)
    for number in HANDLED_BY_WORKERS:
        is_ignored = number == signal.SIGUSR1
        signal.signal(number, signal.SIG_IGN if is_ignored else signal.SIG_DFL)


def guard_forks(in_child: Callable[[], None]) -> None:
    """Call `in_child` in each process that is forked from now on, before a signal reaches it."""
    blocked = threading.local()

    def before() -> None:
        blocked.before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_BY_WORKERS)

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked.before)

    def start_child() -> None:
        in_child()
        restore()

    os.register_at_fork(before=before, after_in_parent=restore, after_in_child=start_child)


def describe_exit(code: int) -> str:
    """Return the text for an exit code; a negative one is a signal."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # most real-time signals have no name
        return f"was ended by signal {-code}"


def reset_signals() -> None:
    """Remove the parent's signal handlers, then unblock signals; those of a terminal are ignored.

    A terminal sends its signals to the whole process group, and the master acts on them.
    """
    signal.set_wakeup_fd(-1)
    ignored = {signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
    ignored |= {
        signal.SIGPIPE,
        signal.SIGXFSZ,
    }  # as in Python: a system call fails with an OSError instead
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
