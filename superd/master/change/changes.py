"""Reloads and upgrades: at most one of them is under way.

Runs in the master. Never raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from superd.master.change.reload import Reload
from superd.master.change.upgrade.hand_on import Upgrade
from superd.master.change.upgrade.take_over import Upgraded

if TYPE_CHECKING:
    from superd.master.master import Master

KEPT_RELOADS = 10


class Changes:
    """What has changed, changes, and is still to be changed. `wants_...` is for what a signal has
    asked for: it comes at once, or after what is under way.
    """

    def __init__(self, master: Master) -> None:
        self.reloads: list[Reload] = []  # the last ones
        self.upgrade: Upgrade | Upgraded | None = None  # the last one
        self.reload_number = 0
        self.wants_reload = False
        self.wants_upgrade = False
        self._master = master

    @property
    def is_under_way(self) -> bool:
        last = [*self.reloads[-1:], *([self.upgrade] if self.upgrade is not None else [])]
        return not all(change.is_over for change in last)

    def reload(self) -> Reload:
        """Start to go over to what the files say now; nothing else may be under way."""
        self.wants_reload = False
        return self._start_reload(self._master.overrides)

    def override(self, service: str, *, enabled: bool) -> Reload:
        """Start to serve a service, or to serve it no more, and leave all else as it runs, whatever
        the files say now; nothing else may be under way.
        """
        overrides = {**self._master.overrides, service: enabled}
        return self._start_reload(overrides, self._master.current.plan.settings.texts)

    def _start_reload(
        self, overrides: Mapping[str, bool], texts: Mapping[str, str] | None = None
    ) -> Reload:
        self.reload_number += 1
        reload = Reload(self._master, self.reload_number, overrides, texts)
        self.reloads = [*self.reloads[1 - KEPT_RELOADS :], reload]
        return reload

    def start_upgrade(self) -> Upgrade:
        """Try the program that is installed now, and go over to it if it could serve; nothing else
        may be under way.
        """
        self.wants_upgrade = False
        number = self.upgrade.number + 1 if self.upgrade is not None else 1
        upgrade = self.upgrade = Upgrade(self._master, number)
        return upgrade

    def keep_time(self, now: float, *, may_start: bool) -> None:
        """Go on with what is under way, or give it up when it is late; start what is wanted."""
        if self.reloads:
            self.reloads[-1].keep_time(now)
        if self.upgrade is not None:
            self.upgrade.keep_time(now)
        if self.wants_upgrade and may_start and not self.is_under_way:
            self.start_upgrade()
        if self.wants_reload and may_start and not self.is_under_way:
            self.reload()

    def abandon(self) -> None:
        """Leave what is under way, since superd stops."""
        if self.reloads:
            self.reloads[-1].abandon()
        if self.upgrade is not None:
            self.upgrade.abandon()
