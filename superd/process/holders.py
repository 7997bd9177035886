"""Finds out which process has a socket of ours open: a program, or another that it has started.

Runs in workers. Finds such a process in any session, unless it has gained privileges there. Raises
OSError where /proc does not show our processes, as in most jails (proc(5)).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterable
from functools import cache

from superd.process.procfs import stat_fields

LAST_PROCESS = "/proc/loadavg"  # its last word is the process ID that was given out last
MAX_RANGE = 1000  # process IDs that are tried one by one; if there are more, /proc is listed
MAX_ROUNDS = 10  # the later ones for processes that were started during the one before


def link_of(descriptor: int) -> str:
    """Return what links to a socket read in /proc/PID/fd."""
    return f"socket:[{os.fstat(descriptor).st_ino}]"


def holder_of(link: str, program: int, others: Container[int], *, is_new: bool) -> int | None:
    """Return a process other than `program` that has the socket and is none of `others`; None if
    there is none. Copies of our own process do not count: they stay in our session, and a program
    is never in it.

    `is_new` says that `program` was started just now, so that the kernel, which gives process IDs
    out in ascending order, cannot have begun again from the lowest more than once.
    """
    _check_proc(os.getpid())
    last = _last_process()
    if last == program:
        return None
    candidates = _between(program, last) if is_new else _all_processes()
    own_session = os.getsid(0)
    for _ in range(MAX_ROUNDS):
        for pid in candidates:
            if pid in others or _session_of(pid) in (None, own_session):
                continue
            if has_open(pid, link, program):
                return pid
        seen, last = last, _last_process()
        if last == seen:
            break
        candidates = _between(seen, last)
    return None


def has_open(pid: int, link: str, program: int) -> bool:
    """Return whether a process has the socket open. One that has gained privileges, and so hides
    its descriptors, is assumed to have it if it belongs to the session of `program`.
    """
    directory = f"/proc/{pid}/fd"
    try:
        for number in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(f"{directory}/{number}") == link:
                    return True
    except OSError:
        return _session_of(pid) == program and not _is_zombie(pid)
    return False


@cache
def _check_proc(own: int) -> None:
    """Raise OSError unless /proc shows this process under its number."""
    if os.readlink("/proc/self") != str(own):
        raise OSError("/proc belongs to another namespace of processes")


def _last_process() -> int:
    descriptor = os.open(LAST_PROCESS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(descriptor, 256).rsplit(None, 1)[1])
    finally:
        os.close(descriptor)


def _between(first: int, last: int) -> Iterable[int]:
    """Return the processes that were started after `first`, up to `last`."""
    if 0 <= last - first <= MAX_RANGE:
        return range(first + 1, last + 1)
    return _all_processes()


def _all_processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _session_of(pid: int) -> int | None:
    """Return the session of a process; None if there is no such process."""
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _is_zombie(pid: int) -> bool:
    """Return whether a process has ended and is not reaped yet; it hides its descriptors, too."""
    try:
        return stat_fields(pid)[0] in ("Z", "X")
    except OSError:
        return False
