"""Checks that only root can change a jail, or a file that superd as root relies on.

Runs wherever a configuration is read. Never changes anything. Never raises.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
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
    jail = steps[-1][0]
    for place, status in steps:
        is_link = stat.S_ISLNK(status.st_mode)
        if not is_link and not stat.S_ISDIR(status.st_mode):
            return f"is not a directory: {place}"
        if status.st_uid != 0 or (not is_link and _is_shared(status, is_jail=place == jail)):
            return f"only root may be able to change a jail, but other users can change {place}"
    return None


def _is_shared(status: os.stat_result, *, is_jail: bool) -> bool:
    """Tell whether other users can replace what is in a directory, or add to a jail."""
    sticky = bool(status.st_mode & stat.S_ISVTX)
    return bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) and (is_jail or not sticky)


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


def file_problem(status: os.stat_result) -> str:
    """Return why superd as root refuses to use a file, with the remedy; "" where it does not, or
    where this process is not root.
    """
    if os.geteuid() != 0:
        return ""
    if status.st_uid != 0:
        return "belongs to another user, and superd runs as root: chown it to root"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by others, and superd runs as root: chmod go-w"
    return ""
