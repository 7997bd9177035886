"""Checks that only root can change a jail, or a file that superd as root relies on: the file itself
and every directory and symbolic link of its path.

Runs wherever a configuration is read. Never changes anything. Never raises.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from superd.errors import reason

MAX_LINKS = 40  # as in the kernel (path_resolution(7))


def jail_problem(path: str) -> str | None:
    """Return why a directory cannot be a jail, with the remedy; None where it can.

    Only root may be able to change the directory and everything that leads to it.
    """
    try:
        steps = list(_steps(Path(path)))
    except OSError as error:
        remedy = f"; create it: install -d -m 0755 {path}" if error.errno == errno.ENOENT else ""
        return f"{reason(error)}{remedy}"
    for place, status in steps:
        if not stat.S_ISLNK(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            return f"is not a directory: {place}"
    if found := _changeable(steps):
        return f"only root may be able to change a jail, but other users can change {found[0]}"
    return None


def file_problem(path: Path, status: os.stat_result) -> str:
    """Return why superd as root refuses to use a file, with the remedy; "" where it does not, or
    where this process is not root. `status` is that of the open file.
    """
    if os.geteuid() != 0:
        return ""
    if status.st_uid != 0:
        return "belongs to another user, and superd runs as root: chown it to root"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by others, and superd runs as root: chmod go-w"
    return path_problem(path)


def path_problem(path: Path) -> str:
    """Return why superd as root refuses to use whatever is at a path, with the remedy: other users
    can replace it, or add files to a directory; "" where it does not, where there is nothing, or
    where this process is not root.
    """
    if os.geteuid() != 0:
        return ""
    try:
        found = _changeable(list(_steps(path.absolute())))
    except OSError:
        return ""
    if found is None:
        return ""
    place, status = found
    remedy = "chmod go-w" if status.st_uid == 0 else "chown it to root"
    what = f"its path has {place}, which other users can change"
    return f"{what}, and superd runs as root: {remedy}"


def _changeable(
    steps: Sequence[tuple[Path, os.stat_result]],
) -> tuple[Path, os.stat_result] | None:
    """Return the first step of a path that other users can change; None if there is none. They can
    add files to a sticky directory, which matters in the last step only.
    """
    last = steps[-1][0]
    for place, status in steps:
        is_sticky = status.st_mode & stat.S_ISVTX and place != last
        is_link = stat.S_ISLNK(status.st_mode)  # its mode has no meaning
        is_shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not is_sticky and not is_link
        if status.st_uid != 0 or is_shared:
            return place, status
    return None


def _steps(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield each directory and symbolic link that the kernel passes (path_resolution(7))."""
    here = Path("/")
    yield here, os.lstat(here)
    rest = [*reversed(path.parts[1:])]
    links = 0
    while rest:
        name = rest.pop()
        if name == "..":
            here = here.parent
            continue
        step = here / name
        status = os.lstat(step)
        yield step, status
        if not stat.S_ISLNK(status.st_mode):
            here = step
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = Path(os.readlink(step))
        if target.is_absolute():
            here = Path("/")
        rest += [part for part in reversed(target.parts) if part != "/"]
