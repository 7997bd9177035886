"""Starts reloads and upgrades, one at a time.

Runs in the master. Raises nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from superd.master.change.reload import Reload
from superd.master.change.upgrade.hand_on import Upgrade
from superd.master.context import Context
from superd.master.supervisor import Supervisor

KEPT_RELOADS = 10


class Changes:
    """Starts changes. A change that a signal asks for (`wants_reload`, `wants_upgrade`) starts at
    once, or after the change that is under way.
    """

    def __init__(self, context: Context, supervisor: Supervisor) -> None:
        self.wants_reload = False
        self.wants_upgrade = False
        self._context = context
        self._supervisor = supervisor

    def reload(self) -> Reload:
        """Start a reload of the configuration's files. No other change may be under way."""
        self.wants_reload = False
        return self._start_reload(self._context.overrides)

    def override(self, service: str, *, enabled: bool) -> Reload:
        """Enable or disable one service, and leave everything else as it runs, whatever the files
        say now. No other change may be under way.
        """
        overrides = {**self._context.overrides, service: enabled}
        return self._start_reload(overrides, self._context.current.plan.settings.texts)

    def _start_reload(
        self, overrides: Mapping[str, bool], texts: Mapping[str, str] | None = None
    ) -> Reload:
        context = self._context
        context.reload_number += 1
        reload = Reload(context, self._supervisor, context.reload_number, overrides, texts)
        context.reloads = [*context.reloads[1 - KEPT_RELOADS :], reload]
        return reload

    def start_upgrade(self) -> Upgrade:
        """Try the program that is installed now, and execute it if it could serve. No other change
        may be under way.
        """
        self.wants_upgrade = False
        last = self._context.upgrade
        upgrade = Upgrade(self._context, 1 if last is None else last.number + 1)
        self._context.upgrade = upgrade
        return upgrade

    def tick(self, now: float) -> None:
        """Take the next step of the change that is under way, or start a change that is wanted."""
        context = self._context
        if context.reloads:
            context.reloads[-1].tick(now)
        if context.upgrade is not None:
            context.upgrade.tick(now)
        if self.wants_upgrade and context.may_change:
            self.start_upgrade()
        if self.wants_reload and context.may_change:
            self.reload()

    def abandon(self) -> None:
        """Fail the change that is under way, since superd stops."""
        if self._context.reloads:
            self._context.reloads[-1].abandon()
        if self._context.upgrade is not None:
            self._context.upgrade.abandon()
