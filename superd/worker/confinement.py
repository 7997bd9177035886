"""Gives up privileges for good, in the one order that works, and proves that they are gone.

Runs in the worker, once, before it meets a client; Linux for the last steps. Never skips a step
that was asked for: each failure raises OSError or ConfinementError and ends the worker.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import stat
import sys

from superd.config.model import Confinement
from superd.errors import SuperdError

PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
OPEN_MAX = 4096  # where there is no /proc to tell
LAST_CAPABILITY = 63  # prctl says EINVAL past the kernel's own last one

_LIMITS = {
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "core": resource.RLIMIT_CORE,
    "memory": resource.RLIMIT_AS,
    "file_size": resource.RLIMIT_FSIZE,
    "cpu": resource.RLIMIT_CPU,
}


class ConfinementError(SuperdError):
    """A step was taken and did not have its effect."""


def limit(confinement: Confinement) -> None:
    """Take the steps that hold from the start: umask, niceness, limits soft and hard alike.

    A limit of memory counts the Python that is loaded already.
    """
    os.umask(confinement.umask)
    if confinement.nice:
        os.setpriority(os.PRIO_PROCESS, 0, confinement.nice)
    for name, number in _LIMITS.items():
        value = getattr(confinement.rlimits, name)
        if value is not None:
            whole = math.ceil(value)
            resource.setrlimit(number, (whole, whole))


def confine(confinement: Confinement) -> None:
    """Take every other step that `confinement` asks for. Only root can take those of identity.

    chroot and chdir come first, as they need root; then capabilities that no later step needs;
    groups before the user, since a user may not change groups any more.
    """
    _assert_no_directory_is_open()
    if confinement.chroot:
        os.chroot(confinement.chroot)
        os.chdir("/")
    if confinement.user is not None:
        _become(confinement.user, confinement.group, confinement.groups)
    if sys.platform == "linux":
        if confinement.no_new_privs:
            _prctl(PR_SET_NO_NEW_PRIVS, 1)
        _prctl(PR_SET_DUMPABLE, 0)


def _become(user: int, group: int | None, groups: tuple[int, ...]) -> None:
    if group is None:
        raise ConfinementError("a user to become, and no group")
    if sys.platform == "linux" and user != 0:
        _drop_capabilities()
    os.setgroups(groups)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    if os.getresuid() != (user,) * 3 or os.getresgid() != (group,) * 3:
        raise ConfinementError(f"still user {os.getresuid()} and group {os.getresgid()}")
    if set(os.getgroups()) - {*groups, group}:
        raise ConfinementError(f"still in the groups {os.getgroups()}")
    if user != 0:
        with contextlib.suppress(PermissionError):
            os.setresuid(0, 0, 0)
            raise ConfinementError("could become root again")


def _drop_capabilities() -> None:
    """Empty the bounding set, so that no program started later can gain any (capabilities(7))."""
    for capability in range(LAST_CAPABILITY + 1):
        if _prctl_value(PR_CAPBSET_READ, capability) == 1:
            _prctl(PR_CAPBSET_DROP, capability)
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    _prctl(PR_SET_KEEPCAPS, 0)


def _assert_no_directory_is_open() -> None:
    """A directory that is still open is a way out of the jail (openat(2))."""
    listed = os.path.isdir("/proc/self/fd")
    for number in map(int, os.listdir("/proc/self/fd")) if listed else range(OPEN_MAX):
        with contextlib.suppress(OSError):
            if stat.S_ISDIR(os.fstat(number).st_mode):
                raise ConfinementError(f"descriptor {number} is an open directory")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl_value(option: int, argument: int) -> int:
    return int(_libc().prctl(option, *(ctypes.c_ulong(n) for n in (argument, 0, 0, 0))))


def _prctl(option: int, argument: int) -> None:
    if _prctl_value(option, argument) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")
