"""Removes the operator's environment variables before a plugin is loaded.

Runs in workers, in the resolver, and in the child processes of a preflight. Never raises.
"""

from __future__ import annotations

import os

from superd.plugin.environment import remember

KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LC_TIME", "TZ", "PYDANTIC_DISABLE_PLUGINS")


def clean_environment() -> None:
    """Remove every variable that is not in `KEPT_VARIABLES`.

    A copy is kept for plugins whose option passes variables to a program.
    """
    remember(os.environ)
    for name in set(os.environ) - set(KEPT_VARIABLES):
        del os.environ[name]
