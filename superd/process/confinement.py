"""Gives up privileges irrevocably, in the one order that works, and verifies that none is left.

Runs in workers, in two steps around the loading of plugins, before they accept a client, and in the
resolver. Never skips a step: a step that fails raises NotPermitted or ConfinementError, which name
it, and ends the process.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import stat
import sys
from collections.abc import Collection, Iterable, Iterator

from superd.config.model import Confinement
from superd.errors import NotPermitted, SuperdError, reason
from superd.process import capabilities

LINUX = sys.platform == "linux"
OPEN_DESCRIPTORS = "/proc/self/fd"
THREADS = "/proc/self/task"
ASSUMED_MAX_DESCRIPTORS = 4096  # without /proc
MANY_DESCRIPTORS = 1 << 16  # closing so many numbers takes some milliseconds

RLIMITS = {
    key: getattr(resource, name)
    for key, name in {
        "nofile": "RLIMIT_NOFILE",
        "nproc": "RLIMIT_NPROC",
        "core": "RLIMIT_CORE",
        "memory": "RLIMIT_AS",  # OpenBSD has none
        "file_size": "RLIMIT_FSIZE",
        "cpu": "RLIMIT_CPU",
    }.items()
    if hasattr(resource, name)
}


class ConfinementError(SuperdError):
    """A step of confinement failed, or did not have its effect."""


def close_other_descriptors(descriptors: Collection[int]) -> None:
    """Close every descriptor but the standard ones and `descriptors`; standard input is empty."""
    kept = {0, 1, 2, *descriptors}
    for number in open_descriptors():
        if number not in kept:
            with contextlib.suppress(OSError):
                os.close(number)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def limit(confinement: Confinement, *, has_own_session: bool = True) -> None:
    """Take the steps that apply before plugins are loaded.

    The worker leaves the master's session, as it could type commands into a terminal that it shares
    with root (TIOCSTI). A memory limit includes the Python that is loaded already. On Linux,
    niceness and capabilities belong to a thread and are inherited by the threads that it starts,
    so a thread that a plugin starts in `prepare` is confined too.
    """
    if has_own_session:
        os.setsid()
    os.umask(confinement.umask)
    if confinement.nice:
        with _step(f"set niceness {confinement.nice}", "CAP_SYS_NICE"):
            os.setpriority(os.PRIO_PROCESS, 0, confinement.nice)
    for name, value in confinement.rlimits:
        if value is not None:
            _set_limit(name, math.ceil(value))
    if LINUX:
        if confinement.user:
            with _step("empty the capability bounding set", "CAP_SETPCAP"):
                if confinement.no_new_privs:  # without it, set-user-ID programs are to have theirs
                    capabilities.empty_bounding_set()
                capabilities.drop_on_change_of_user()
        if confinement.user != 0:
            capabilities.clear_inheritable()
        if confinement.no_new_privs:
            capabilities.set_no_new_privs()


def confine(confinement: Confinement) -> None:
    """Take every other step of `confinement`, after plugins are loaded."""
    _check_descriptors()
    become(confinement)
    if LINUX:
        if confinement.user is None:
            _drop_capabilities()
        elif confinement.user != 0 and capabilities.held() != capabilities.NONE:
            raise ConfinementError("still has capabilities")
        capabilities.set_dumpable(bool(confinement.rlimits.core))


def become(confinement: Confinement) -> None:
    """Change to the root directory, groups and user of `confinement`.

    The root directory comes first, as changing it requires root. Groups come before the user, as
    another user than root cannot change groups.
    """
    if confinement.chroot:
        with _step(f"change the root directory to {confinement.chroot}", "CAP_SYS_CHROOT"):
            os.chroot(confinement.chroot)
    os.chdir("/")  # a working directory outside the jail is a way out, as an open one is
    if confinement.user is not None:
        _become(confinement.user, confinement.group, confinement.groups)


def _set_limit(name: str, value: int) -> None:
    """Set a limit, soft and hard. Python raises ValueError for EPERM."""
    what = f"cannot set rlimits.{name.replace('_', '-')} to {value}"
    if name not in RLIMITS:
        raise ConfinementError(f"{what}: this system has no such limit")
    _, hard = resource.getrlimit(RLIMITS[name])
    try:
        resource.setrlimit(RLIMITS[name], (value, value))
    except ValueError:
        remedy = f"the limit is {hard} and only CAP_SYS_RESOURCE could raise it"
        raise NotPermitted(f"{what}: {remedy}") from None


def _check_descriptors() -> None:
    """Refuse directories that `prepare` left open, and keep other descriptors from programs.

    An open directory is a way out of the jail (openat(2)).
    """
    for number in open_descriptors():
        with contextlib.suppress(OSError):
            if stat.S_ISDIR(os.fstat(number).st_mode):
                raise ConfinementError(f"a plugin left the directory {_name(number)} open")
            if number > 2:
                os.set_inheritable(number, False)


def open_descriptors() -> list[int]:
    """Return the numbers of all open descriptors."""
    try:
        numbers: Iterable[int] = map(int, os.listdir(OPEN_DESCRIPTORS))
    except OSError:
        numbers = range(end_of_descriptors())
    return [number for number in numbers if _is_open(number)]


def end_of_descriptors() -> int:
    """Return a number that is above all open descriptors; without /proc, as in a jail, one that is
    high enough unless a process has tens of thousands of them.
    """
    try:
        return max(map(int, os.listdir(OPEN_DESCRIPTORS))) + 1
    except OSError:
        return min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], MANY_DESCRIPTORS)


def _is_open(number: int) -> bool:
    """Return whether a descriptor is open: the one for reading the list is closed by now."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _name(number: int) -> str:
    try:
        return os.readlink(f"{OPEN_DESCRIPTORS}/{number}")
    except OSError:
        return f"of descriptor {number}"


def _become(user: int, group: int | None, groups: tuple[int, ...]) -> None:
    """Change to `user` irrevocably: real, effective and saved ids, and only these groups."""
    if group is None:
        raise ConfinementError("expected a group with the user, found none")
    with _step(f"set the groups {list(groups)}", "CAP_SETGID"):
        os.setgroups(groups)
    with _step(f"become group {group}", "CAP_SETGID"):
        if hasattr(os, "setresgid"):
            os.setresgid(group, group, group)
        else:
            os.setgid(group)  # for root it sets all three ids
    with _step(f"become user {user}", "CAP_SETUID"):
        if hasattr(os, "setresuid"):
            os.setresuid(user, user, user)
        else:
            os.setuid(user)
    if {os.getuid(), os.geteuid()} != {user} or {os.getgid(), os.getegid()} != {group}:
        raise ConfinementError(f"still user {os.geteuid()} and group {os.getegid()}")
    if {*os.getgroups(), group} != {*groups, group}:
        raise ConfinementError(f"still in the groups {os.getgroups()}")
    if user != 0:
        with contextlib.suppress(OSError):
            os.setuid(0)  # succeeds with a saved id of 0, too
            raise ConfinementError("could become root again")


def _drop_capabilities() -> None:
    """Give up capabilities of another user than root, such as AmbientCapabilities= of systemd."""
    if capabilities.held() != capabilities.NONE:
        if len(os.listdir(THREADS)) > 1:
            raise ConfinementError("a plugin started a thread, which would keep its capabilities")
        capabilities.keep(capabilities.NONE)


@contextlib.contextmanager
def _step(what: str, capability: str) -> Iterator[None]:
    """Add the step that failed and the missing capability to its OSError."""
    try:
        yield
    except PermissionError as error:
        raise NotPermitted(f"cannot {what}: {error.strerror}; it requires {capability}") from error
    except OSError as error:
        raise ConfinementError(f"cannot {what}: {reason(error)}") from error
