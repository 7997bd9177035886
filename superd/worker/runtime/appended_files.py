"""The files that plugins append to, such as logs: found after `prepare`, replaced after a rotation.

Runs in the worker. The master opens the files again, as the worker is confined and cannot. A new
file takes the descriptor of the old one, so a plugin need not know. Raises OSError only where a
descriptor that the worker knows to be open cannot be replaced.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence

from superd.process.confinement import OPEN_DESCRIPTORS
from superd.worker.channel import AppendedFile

DELETED = " (deleted)"  # at the end of the path of a file without a name (proc(5))


def appended_files(service: str, descriptors: Iterable[int]) -> Iterator[AppendedFile]:
    """Yield those of the descriptors that are files open for appending.

    A file that is written in any other way, such as a database, must stay as it is.
    """
    for number in descriptors:
        with contextlib.suppress(OSError):
            status, flags = os.fstat(number), fcntl.fcntl(number, fcntl.F_GETFL)
            path = os.readlink(f"{OPEN_DESCRIPTORS}/{number}")
            is_appended = stat.S_ISREG(status.st_mode) and flags & os.O_APPEND
            if is_appended and not path.endswith(DELETED):
                yield AppendedFile(service, number, path, flags, stat.S_IMODE(status.st_mode))


class AppendedFiles:
    """The files of all plugins of a worker, each with its device and inode: a plugin may have
    closed one since, and another file may have its descriptor.
    """

    def __init__(self, files: Collection[AppendedFile]) -> None:
        self._identities = {file.number: _identity(file.number) for file in files}

    def replace(self, numbers: Sequence[int], files: Sequence[int]) -> bool:
        """Put `files` in the place of the descriptors `numbers`, and return whether all of them
        have arrived. A descriptor that the plugin has closed, or whose file was not renamed, stays
        as it is.
        """
        for number, file in zip(numbers, files, strict=False):
            found = _identity(number)
            if found is not None and found == self._identities.get(number) != _identity(file):
                os.dup2(file, number, inheritable=False)
                self._identities[number] = _identity(number)
        for file in files:
            os.close(file)
        return len(files) == len(numbers)


def _identity(number: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino
