"""Looks at processes of another user as that user, where root alone may not.

Runs in the master, in a child process for the moment that it takes. A root without CAP_SYS_PTRACE,
as in a container or under a unit of systemd, sees neither the descriptors nor the environment of
other users' processes (proc(5)); their own user does. Raises nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from superd.config.model import Confinement
from superd.process.capabilities import may_see_every_process
from superd.process.confinement import become
from superd.process.isolated import run_isolated

TIMEOUT = 2.0  # seconds


def run_as(confinement: Confinement, find: Callable[[], list[int]]) -> list[int]:
    """Return what `find` returns for the user and group of a confinement; nothing on failure."""
    if os.geteuid() != 0 or confinement.user in (None, 0) or may_see_every_process():
        return find()
    outcome = run_isolated({"": partial(_find_as, confinement, find)}, TIMEOUT)[""]
    return outcome.result or []


def _find_as(confinement: Confinement, find: Callable[[], list[int]]) -> list[int]:
    become(confinement.model_copy(update={"chroot": ""}))  # a jail has no /proc
    return find()
