"""Users and groups of the system by name (nsswitch.conf(5)).

Used wherever a configuration is read. Raises UnknownAccount, or TemporaryFailure where the system
cannot answer now.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
from typing import Literal

from superd.errors import TemporaryFailure, shown

Kind = Literal["user", "group"]

RECORD_BYTES = 256  # more than a struct passwd or group has
BUFFER_BYTES = 1 << 16  # for its texts
# getpwnam(3): the name was not found; glibc has these also for a source that is not installed
NOT_FOUND_ERRNOS = (0, errno.ENOENT, errno.ESRCH, errno.EBADF, errno.EPERM, errno.ERANGE)


class UnknownAccount(ValueError):
    """There is no such user or group."""


def id_of(name: str, kind: Kind) -> int:
    """Return the number of a user or a group."""
    try:
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        number = _errno_of_lookup(name, kind)
        if number not in NOT_FOUND_ERRNOS:
            why = os.strerror(number)
            raise TemporaryFailure(f"cannot look up {kind} {shown(name)} now: {why}") from None
        raise UnknownAccount(f"there is no {kind} {shown(name)}") from None


def _errno_of_lookup(name: str, kind: Kind) -> int:
    """Look a name up again, and return the error number, which Python hides; 0 for none."""
    import ctypes  # imported late: most configurations have no unknown name

    with contextlib.suppress(OSError, AttributeError, ValueError):
        libc = ctypes.CDLL(None)
        look_up = libc.getpwnam_r if kind == "user" else libc.getgrnam_r
        record = ctypes.create_string_buffer(RECORD_BYTES)
        texts = ctypes.create_string_buffer(BUFFER_BYTES)
        found = ctypes.c_void_p()
        size = ctypes.c_size_t(BUFFER_BYTES)
        return int(look_up(os.fsencode(name), record, texts, size, ctypes.byref(found)))
    return 0
