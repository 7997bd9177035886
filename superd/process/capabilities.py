"""Linux's capabilities and process attributes, set through the C library (capabilities(7)).

Runs in workers before they accept a client, in the processes that they fork, and in the resolver;
the command line and the master only read what they have, and the master becomes a subreaper. Never
adds a capability. Linux only: on another system every call fails. Raises OSError.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import astuple, dataclass, replace

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_GET_SECUREBITS = 27
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

# with one of these set, a process keeps capabilities when it changes from root to another user
SECBIT_NO_SETUID_FIXUP = 1 << 2
SECBIT_KEEP_CAPS = 1 << 4

CAP_SYS_PTRACE = 19

CAPABILITY_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3 of capget(2)
LAST_CAPABILITY = 63  # prctl(2) fails with EINVAL above the last one of the kernel

_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Capabilities:
    """Three capability sets of a thread, as bits; `inheritable` may pass to programs it starts."""

    effective: int = 0
    permitted: int = 0
    inheritable: int = 0


NONE = Capabilities()


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


_Words = ctypes.c_uint32 * 6  # the three sets' lower halves, then their upper halves


def held() -> Capabilities:
    """Return the capabilities of the calling thread."""
    words = _Words()
    _call("capget", ctypes.byref(_Header(CAPABILITY_VERSION_3, 0)), words)
    return Capabilities(*(words[n] | words[n + 3] << 32 for n in range(3)))


def keep(capabilities: Capabilities) -> None:
    """Give up every capability that is not in `capabilities`."""
    sets = astuple(capabilities)
    words = _Words(*(n & 0xFFFFFFFF for n in sets), *(n >> 32 for n in sets))
    _call("capset", ctypes.byref(_Header(CAPABILITY_VERSION_3, 0)), words)


def empty_bounding_set() -> None:
    """Prevent programs that are started later from gaining any capability."""
    for capability in range(LAST_CAPABILITY + 1):
        if _is_in_bounding_set(capability):
            _prctl(PR_CAPBSET_DROP, capability)


def clear_inheritable() -> None:
    """Empty the inheritable set, and with it the ambient one."""
    keep(replace(held(), inheritable=0))


def drop_on_change_of_user() -> None:
    """Clear the secure bits that keep capabilities at a change to a user other than root."""
    bits = _prctl(PR_GET_SECUREBITS)
    unwanted = SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS
    if bits & unwanted:
        _prctl(PR_SET_SECUREBITS, bits & ~unwanted)


def set_no_new_privs() -> None:
    """Have programs run without the privileges of set-user-id bits and file capabilities."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def set_parent_death_signal(number: int) -> None:
    """Have the kernel send this process a signal when its parent ends (PR_SET_PDEATHSIG)."""
    _prctl(PR_SET_PDEATHSIG, number)


def become_subreaper() -> None:
    """Have this process adopt its descendants whose parents end (PR_SET_CHILD_SUBREAPER)."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def may_see_every_process() -> bool:
    """Return whether this process sees the descriptors of other users' processes (proc(5))."""
    try:
        return bool(held().effective & 1 << CAP_SYS_PTRACE)
    except OSError:
        return False


def set_dumpable(allowed: bool) -> None:
    """Allow or forbid core dumps and inspection by processes of the same user (ptrace(2))."""
    _prctl(PR_SET_DUMPABLE, int(allowed))


def _is_in_bounding_set(capability: int) -> bool:
    try:
        return _prctl(PR_CAPBSET_READ, capability) == 1
    except OSError:
        return False  # this kernel has fewer capabilities


def _prctl(option: int, argument: int = 0) -> int:
    return _call("prctl", option, *map(ctypes.c_ulong, (argument, 0, 0, 0)))


def _call(function: str, *arguments: object) -> int:
    result = int(_LIBC[function](*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
