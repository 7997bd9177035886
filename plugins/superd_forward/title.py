"""The title of the process, as ps(1) shows it: which client is connected to which target."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from itertools import islice

from setproctitle import getproctitle, setproctitle

MAX_SHOWN = 3  # connections of a service; the rest is a number
UPDATE_INTERVAL = 0.2  # seconds

_base = ""
_parts: dict[Title, str] = {}


class Title:
    """One service's part of the title. The text of a connection is its str()."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connections: Callable[[], Collection[object]]
    ) -> None:
        global _base
        _base = _base or getproctitle()
        self._loop = loop
        self._connections = connections
        self._is_scheduled = False

    def changed(self) -> None:
        """Schedule an update of the title."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_later(UPDATE_INTERVAL, self._update)

    def _update(self) -> None:
        self._is_scheduled = False
        connections = self._connections()
        shown = ", ".join(map(str, islice(connections, MAX_SHOWN)))
        more = f" and {len(connections) - MAX_SHOWN} more" if len(connections) > MAX_SHOWN else ""
        _parts[self] = shown + more
        title = " ".join(part for part in (_base, *_parts.values()) if part)
        setproctitle(title.encode(errors="replace").decode())  # paths are any bytes
