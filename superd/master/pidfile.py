"""The pid file: the process that holds its lock is the master, whatever number it contains. And the
master of a configuration by its process title, where the paths of its files are not known.

Runs in the master, and in the command line, which looks up the holder. The lock ends with the
process, so the file is never stale, and superd never signals a number just because a file contains
it (fcntl(2), F_GETLK). Raises SuperdError.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from pathlib import Path

from superd.errors import AddressInUse, NotPermitted, SuperdError, reason

MASTER_TITLE = "superd: master "  # of the process; the configuration's path follows

_FLOCK = struct.Struct("@hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid


class PidFile:
    """A locked pid file. Keep it referenced as long as the master runs.

    `descriptor` is the locked file of the program before an upgrade: the lock belongs to the
    process, and outlives execve(2).
    """

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        self.path = path
        if descriptor is not None:
            self.descriptor = descriptor  # the number in it is still right
            return
        self.descriptor = self._locked()
        try:
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.remove()
            raise SuperdError(f"pid file {path}: {reason(error)}") from None

    def _locked(self) -> int:
        while True:
            descriptor = _open(self.path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise SuperdError(f"{self.path}: {reason(error)}") from None
                other = f"another superd (process {holder(self.path)})"
                raise AddressInUse(f"{other} runs with the pid file {self.path}") from None
            if self._is_still(descriptor):
                return descriptor
            os.close(descriptor)  # its last owner removed the file meanwhile

    def _is_still(self, descriptor: int) -> bool:
        ours = os.fstat(descriptor)
        try:
            there = os.lstat(self.path)
        except FileNotFoundError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def remove(self) -> None:
        """Remove the file, then release the lock."""
        with contextlib.suppress(OSError):
            if self._is_still(self.descriptor):
                os.unlink(self.path)
        os.close(self.descriptor)


def holder(path: Path) -> int | None:
    """Return the process that holds the lock; None if no superd runs with this pid file.

    0 means a process that is not visible here, such as one in another container with this file.
    """
    try:
        descriptor = _open(path, os.O_RDONLY)
    except SuperdError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else max(0, pid)


def master_of(configuration: Path) -> int | None:
    """Return the process that serves a configuration by its title; None where none is found.

    Only a process of root or of this user counts, as any process can have any title, and only one
    that sees the same files.
    """
    wanted = os.path.realpath(configuration)
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            with contextlib.suppress(OSError):
                title = os.fsdecode(Path(entry.path, "cmdline").read_bytes().rstrip(b"\0"))
                if (
                    title.startswith(MASTER_TITLE)
                    and os.path.realpath(title.removeprefix(MASTER_TITLE)) == wanted
                    and entry.stat().st_uid in (0, os.geteuid())
                    and _has_our_files(entry.path)
                ):
                    return int(entry.name)
    return None


def _has_our_files(process: str) -> bool:
    return os.readlink(f"{process}/ns/mnt") == os.readlink("/proc/self/ns/mnt")


def _open(path: Path, flags: int) -> int:
    """Open without following a symbolic link, since root is about to write the file."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    except OSError as error:
        kind = NotPermitted if isinstance(error, PermissionError) else SuperdError
        is_link = error.errno == errno.ELOOP
        words = "is a symbolic link" if is_link else os.strerror(error.errno or 0)
        raise kind(f"pid file {path}: {words}") from error
    status = os.fstat(descriptor)
    mistake = ""
    if not stat.S_ISREG(status.st_mode):
        mistake = "is not a regular file"
    elif status.st_nlink > 1:
        mistake = "has more than one name (a hard link)"
    if mistake:
        os.close(descriptor)
        raise SuperdError(f"pid file {path}: {mistake}")
    return descriptor
