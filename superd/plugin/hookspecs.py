"""The reference of the hooks that a plugin can implement.

They are called in the worker and in the preflight process, never in the master. An exception stops
only the services that use the plugin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from superd.plugin.service import Service

PROJECT = "superd"  # also the name of the entry-point group

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def superd_services() -> Sequence[type[Service]]:  # type: ignore[empty-body]  # a specification
    """Return a list of the service classes of this plugin; called once, before confinement. Each
    needs an entry point of its name: several may lead to one module.
    """
