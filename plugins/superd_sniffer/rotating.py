"""A rotating file of bounded size: when it is full, its content is copied to an older file.

All files are opened once, before confinement, since a jail has no files to open or rename. The file
keeps its name and is truncated, which `tail -F` supports. The older files are PATH.1, PATH.2, ...;
the one that was written first is overwritten next. Workers that share a file lock it during a
write. All are opened for appending, so superd reopens them after they were renamed. Raises OSError
if a file cannot be opened, and only then.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

MODE = 0o640
FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
COPY_BYTES = 1 << 20


class RotatingFile:
    """Holds at most `size` bytes, and as many in each of `files - 1` older files. Each begins with
    `head`. `lost` counts pieces that could not be written.
    """

    def __init__(self, path: Path, size: int, files: int, head: bytes = b"") -> None:
        self.path = path
        self.size = size
        self.head = head
        self.lost = 0
        current, *older = _names(path, files)
        self._file = _opened(current)
        self._older = [_opened(one) for one in older]

    def write(self, pieces: list[bytes]) -> None:
        """Append pieces; each is whole in one file."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            while pieces:
                pieces = pieces[self._write_what_fits(pieces) :]
        except OSError:
            self.lost += len(pieces)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _write_what_fits(self, pieces: list[bytes]) -> int:
        """Append as many pieces as fit, at least one; return their number."""
        used = os.fstat(self._file).st_size
        if used and used + len(pieces[0]) > self.size:
            self._rotate()
            used = 0
        if not used and self.head:
            used = os.write(self._file, self.head)
        number = 0
        for piece in pieces:
            used += len(piece)
            if number and used > self.size:
                break
            number += 1
        data = memoryview(b"".join(pieces[:number]))
        before = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            os.ftruncate(self._file, before)  # drop a partial piece
            raise
        return number

    def _rotate(self) -> None:
        if self._older:
            oldest = min(self._older, key=lambda file: os.fstat(file).st_mtime_ns)
            os.ftruncate(oldest, 0)
            offset = 0
            while piece := os.pread(self._file, COPY_BYTES, offset):
                offset += os.write(oldest, piece)
        os.ftruncate(self._file, 0)

    def close(self) -> None:
        for file in (self._file, *self._older):
            os.close(file)


def check_writable(path: Path, files: int) -> None:
    """Raise the OSError with which RotatingFile could not open its files; create none of them."""
    for one in _names(path, files):
        try:
            os.close(os.open(one, FLAGS))
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise
            if not os.access(path.parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(one)) from None


def _names(path: Path, files: int) -> list[Path]:
    return [path, *(Path(f"{path}.{number}") for number in range(1, files))]


def _opened(path: Path) -> int:
    return os.open(path, FLAGS | os.O_CREAT, MODE)
