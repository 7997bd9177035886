"""Linux's capabilities and its process attributes, by way of the C library (capabilities(7)).

Runs in the worker, before it meets a client, and in processes that it forks. Only ever takes away;
never runs on another system.
Raises OSError.
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
PR_SET_NO_NEW_PRIVS = 38

# with one of these set, who ceases to be root would keep capabilities
SECBIT_NO_SETUID_FIXUP = 1 << 2
SECBIT_KEEP_CAPS = 1 << 4

VERSION_3 = 0x20080522
LAST_CAPABILITY = 63  # prctl says EINVAL past the kernel's own last one

_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Capabilities:
    """Three of a thread's sets, as bits. Inheritable is what it may hand to a program it starts."""

    effective: int = 0
    permitted: int = 0
    inheritable: int = 0


NONE = Capabilities()


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


_Words = ctypes.c_uint32 * 6  # the three sets' lower halves, then their upper halves


def held() -> Capabilities:
    """Return what the calling thread has."""
    words = _Words()
    _call("capget", ctypes.byref(_Header(VERSION_3, 0)), words)
    return Capabilities(*(words[n] | words[n + 3] << 32 for n in range(3)))


def keep(capabilities: Capabilities) -> None:
    """Give up whatever is not in `capabilities`."""
    sets = astuple(capabilities)
    words = _Words(*(n & 0xFFFFFFFF for n in sets), *(n >> 32 for n in sets))
    _call("capset", ctypes.byref(_Header(VERSION_3, 0)), words)


def empty_bounding_set() -> None:
    """Make sure that no program started later can gain any capability."""
    for capability in range(LAST_CAPABILITY + 1):
        if _is_in_bounding_set(capability):
            _prctl(PR_CAPBSET_DROP, capability)


def clear_inheritable() -> None:
    """Empty the inheritable set, and with it the ambient one."""
    keep(replace(held(), inheritable=0))


def drop_on_change_of_user() -> None:
    """Undo what would keep capabilities for a user who is not root."""
    bits = _prctl(PR_GET_SECUREBITS)
    unwanted = SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS
    if bits & unwanted:
        _prctl(PR_SET_SECUREBITS, bits & ~unwanted)


def set_no_new_privs() -> None:
    """Make set-user-id programs and the like run without what they would get."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def set_parent_death_signal(number: int) -> None:
    """Have the kernel send this process a signal when its parent ends."""
    _prctl(PR_SET_PDEATHSIG, number)


def set_dumpable(allowed: bool) -> None:
    """Say whether other processes of the same user may look into this one, and whether it dumps."""
    _prctl(PR_SET_DUMPABLE, int(allowed))


def _is_in_bounding_set(capability: int) -> bool:
    try:
        return _prctl(PR_CAPBSET_READ, capability) == 1
    except OSError:
        return False  # this kernel has fewer


def _prctl(option: int, argument: int = 0) -> int:
    return _call("prctl", option, *map(ctypes.c_ulong, (argument, 0, 0, 0)))


def _call(function: str, *arguments: object) -> int:
    result = int(_LIBC[function](*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
