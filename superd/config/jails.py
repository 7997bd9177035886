"""Tells whether a directory can be a jail: root's alone, and everything that leads to it.

Runs where a configuration is checked as root. Never changes anything. Never raises.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from superd.errors import reason

MOST_LINKS = 40  # as many as the kernel follows


def jail_mistake(path: str) -> str | None:
    """Return why a directory is no jail; None where it is one."""
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
            return f"a jail is root's alone, and others can change {place}"
    return None


def _is_shared(status: os.stat_result, *, is_jail: bool) -> bool:
    """Tell whether others can put something there, or in a sticky directory replace what is."""
    sticky = bool(status.st_mode & stat.S_ISVTX)
    return bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) and (is_jail or not sticky)


def _steps(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield what the kernel passes on its way, symbolic links too (path_resolution(7))."""
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
        if links > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = Path(os.readlink(step))
        if target.is_absolute():
            here = Path("/")
        rest += [part for part in reversed(target.parts) if part != "/"]


def distrust(status: os.stat_result) -> str:
    """Return why root is not to go by a file; nothing where it is, or this process is not root."""
    if os.geteuid() == 0 and status.st_uid != 0:
        return "belongs to another user, and superd runs as root: chown it to root"
    if os.geteuid() == 0 and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by others, and superd runs as root: chmod go-w"
    return ""
