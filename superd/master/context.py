"""What the master knows: plain data, taken by everything that acts on it or reports it.

Runs in the master. Starts, signals and binds nothing. Raises nothing.
"""

from __future__ import annotations

import selectors
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from superd.admission.tally import Tally
from superd.master.ban_filters import BanFilters
from superd.master.bans import Bans
from superd.master.control_socket import ControlSocket
from superd.master.logs.log import Log
from superd.master.orphans import Orphans
from superd.master.pidfile import PidFile
from superd.master.rates import Rates
from superd.master.resolver import Resolver
from superd.master.signals import Signals
from superd.master.systemd.notify import Notifier
from superd.master.workers.child import Child
from superd.master.workers.generation import Generation, Slot


class MasterState(Enum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"


class Change(Protocol):
    """A reload or an upgrade."""

    @property
    def number(self) -> int:
        """Its number; reloads and upgrades are counted separately."""

    @property
    def state(self) -> str:
        """The step that it has reached."""

    @property
    def problems(self) -> list[str]:
        """Why it failed, one line each."""

    @property
    def process(self) -> int | None:
        """The process in which the master tries it at the moment."""

    @property
    def is_over(self) -> bool:
        """Whether the next change may start."""

    def report(self) -> dict[str, Any]:
        """Return its progress as JSON: state, problems, code, changes, notices."""

    def tick(self, now: float) -> None:
        """Take the next step if it is due, or fail if it is overdue."""

    def abandon(self) -> None:
        """Fail if it is not over, since superd stops."""


@dataclass(eq=False)
class Context:
    """The state of one master. `current` is the generation that serves, or that is starting; of the
    other `generations` one may be starting for a reload, and the rest drain.
    """

    current: Generation
    tally: Tally
    log: Log
    bans: Bans
    signals: Signals
    notifier: Notifier
    resolver: Resolver | None = None
    pid_file: PidFile | None = None
    in_background: bool = False
    is_trial: bool = False  # of an upgrade: workers start, but listen on nothing
    state: MasterState = MasterState.STARTING
    since: float = field(default_factory=time.time)  # seconds since 1970
    generations: list[Generation] = field(default_factory=list)
    serial: int = 0  # of the worker that was started last
    restarts: Counter[str] = field(default_factory=Counter)  # by pool
    overrides: dict[str, bool] = field(default_factory=dict)  # services enabled or disabled by hand
    reopened: float = 0.0  # when files were reopened last, by the monotonic clock
    reload_number: int = 0
    reloads: list[Change] = field(default_factory=list)  # the last ones, in order
    upgrade: Change | None = None  # the last one
    control: ControlSocket | None = None
    failure: tuple[int, str] | None = None  # exit code and text
    foreign: Collection[int] = ()  # children of this process that superd has not started
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def __post_init__(self) -> None:
        self.generations = self.generations or [self.current]
        self.rates = Rates(self.tally.scoreboard)
        self.orphans = Orphans(self.log, self.foreign)
        self.ban_filters = BanFilters(self.bans, self.log)

    @property
    def slots(self) -> list[Slot]:
        """The slots of all generations."""
        return [slot for generation in self.generations for slot in generation.slots]

    @property
    def children(self) -> list[Child]:
        return [slot.child for slot in self.slots if slot.child is not None]

    @property
    def processes(self) -> set[int]:
        """The processes that the master has started, and not reaped yet."""
        found = {child.pid for child in self.children}
        found |= {change.process for change in self._last_changes if change.process is not None}
        if self.resolver is not None and self.resolver.pid is not None:
            found.add(self.resolver.pid)
        return found

    @property
    def _last_changes(self) -> list[Change]:
        """The last reload and the last upgrade: only these may be under way."""
        return [*self.reloads[-1:], *([self.upgrade] if self.upgrade is not None else [])]

    @property
    def is_starting(self) -> bool:
        return self.state is MasterState.STARTING

    @property
    def is_serving(self) -> bool:
        return self.state is MasterState.SERVING

    @property
    def is_up(self) -> bool:
        return self.is_starting or self.is_serving

    @property
    def is_changing(self) -> bool:
        """Whether a reload or an upgrade is under way."""
        return not all(change.is_over for change in self._last_changes)

    @property
    def may_change(self) -> bool:
        """Whether a reload or an upgrade may start now."""
        return self.is_serving and not self.is_changing

    @property
    def phase(self) -> str:
        """The state, or "reloading" while a reload or an upgrade is under way."""
        return "reloading" if self.is_serving and self.is_changing else self.state.value

    @property
    def reload_failure(self) -> str:
        """The first problem of the last reload if it failed, else ""."""
        failed = [reload for reload in self.reloads[-1:] if reload.state == "failed"]
        return failed[0].problems[0] if failed and failed[0].problems else ""

    def give_up(self, code: int, text: str) -> None:
        """Have the master stop at once, since superd cannot start; the first failure counts."""
        if self.failure is None:
            self.failure = (code, text)
            self.log.error(text)
