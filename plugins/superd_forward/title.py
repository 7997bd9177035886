"""The title of the process, as ps(1) shows it: who is connected to whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from itertools import islice

from setproctitle import getproctitle, setproctitle

SHOWN = 3  # connections; the others are counted
INTERVAL = 0.2  # seconds between two titles

_base = ""
_parts: dict[Title, str] = {}


class Title:
    """The part that one service has in the title; each of its connections tells its own text."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connections: Callable[[], Collection[object]]
    ) -> None:
        global _base
        _base = _base or getproctitle()
        self._loop = loop
        self._connections = connections
        self._is_due = False

    def changed(self) -> None:
        """Have the title made anew, soon."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_later(INTERVAL, self._show)

    def _show(self) -> None:
        self._is_due = False
        connections = self._connections()
        shown = ", ".join(map(str, islice(connections, SHOWN)))
        more = f" and {len(connections) - SHOWN} more" if len(connections) > SHOWN else ""
        _parts[self] = shown + more
        title = " ".join(part for part in (_base, *_parts.values()) if part)
        setproctitle(title.encode(errors="replace").decode())  # paths may be no text
