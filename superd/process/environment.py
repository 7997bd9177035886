"""What a plugin may see of the operator's environment.

Runs in the worker, and where plugins are rehearsed. Never raises.
"""

from __future__ import annotations

import os

from superd.plugin.environment import remember

KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LC_TIME", "TZ", "PYDANTIC_DISABLE_PLUGINS")


def clean_environment() -> None:
    """Forget every variable that is not in `KEPT`, but for plugins that are told to pass it on."""
    remember(os.environ)
    for name in set(os.environ) - set(KEPT):
        del os.environ[name]
