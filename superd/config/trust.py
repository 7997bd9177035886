"""Whether superd as root may go by a file: one that nobody else can change.

Runs wherever a configuration is read. Never raises.
"""

from __future__ import annotations

import os
import stat


def distrust(status: os.stat_result) -> str:
    """Return why root is not to go by a file; nothing where it is, or this process is not root."""
    if os.geteuid() == 0 and status.st_uid != 0:
        return "belongs to another user, and superd runs as root: chown it to root"
    if os.geteuid() == 0 and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by others, and superd runs as root: chmod go-w"
    return ""
