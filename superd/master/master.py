"""The master's loop: signals, workers, listeners, time.

Runs in the master, single-threaded. Never accepts a connection or reads a datagram of a service,
never imports a plugin. A signal handler only queues; `handle_...` below does the work, and its
docstring is the operator's manual.
"""

from __future__ import annotations

import selectors
import signal
import time
from collections.abc import Callable
from enum import Enum
from functools import partial

from superd.admission.tally import Tally
from superd.errors import ExitCode, SuperdError
from superd.listen.listeners import Listener
from superd.master.bans import Bans
from superd.master.change.changes import Changes
from superd.master.commands import answer
from superd.master.control_socket import ControlSocket, control_listener
from superd.master.logs.log import Log
from superd.master.pidfile import PidFile
from superd.master.plan.plan import Plan
from superd.master.rates import Rates
from superd.master.resolver import Resolving
from superd.master.signals import Signals
from superd.master.supervisor import LAST_WORD, Workers, drain_time
from superd.master.systemd.notify import Supervisor
from superd.master.workers.child import reap
from superd.master.workers.generation import Generation

WATCH = 0.4  # seconds between looks at the listeners: sabotage is repaired within a second


class State(Enum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"


class Master:
    """Keeps the workers of all pools running until it is told to stop."""

    def __init__(
        self,
        current: Generation,
        tally: Tally,
        log: Log,
        signals: Signals,
        supervisor: Supervisor,
        *,
        in_background: bool = False,
        is_trial: bool = False,
        pid_file: PidFile | None = None,
        resolving: Resolving | None = None,
        bans: Bans | None = None,
    ) -> None:
        plan = current.plan
        self.log = log
        self.supervisor = supervisor
        self.in_background = in_background
        self.is_trial = is_trial
        self.pid_file = pid_file
        self.state = State.STARTING
        self.since = time.time()
        self.failure: tuple[int, str] | None = None
        self.tally = tally
        self.rates = Rates(tally.scoreboard)
        self.changes = Changes(self)
        self.overrides: dict[str, bool] = {}  # which services operators have enabled, or disabled
        if bans is None:
            bans = Bans(plan.settings.daemon.ban_file, log, tally.bans)
        self.bans = bans
        self.resolving = resolving
        self.configured(plan)
        self.selector = selectors.DefaultSelector()
        self.workers = Workers(self, current)
        self.control: ControlSocket | None = None
        self._kill_at: float | None = None
        self._watch_at = 0.0
        self.signals = signals
        self.selector.register(self.signals, selectors.EVENT_READ, self._signalled)

    @property
    def current(self) -> Generation:
        """The generation that serves, or is about to."""
        return self.workers.current

    @property
    def is_starting(self) -> bool:
        return self.state is State.STARTING

    @property
    def is_serving(self) -> bool:
        return self.state is State.SERVING

    def configured(self, plan: Plan) -> None:
        """Go by a plan in what is the daemon's own."""
        self.bans.protect(plan.settings.daemon.never_ban)
        if self.resolving is not None and not plan.needs_resolver:
            self.resolving.close()
            self.resolving = None
        self.provide_resolver(plan)

    def provide_resolver(self, plan: Plan) -> None:
        """Have a resolver for the workers of a plan, if they need one; to be called before they
        start, as they are told its address.
        """
        if plan.needs_resolver:
            self.resolving = self.resolving or Resolving(self.log)
            self.resolving.serve(plan.pools)

    def open_control(self, listener: Listener | None = None) -> None:
        """Answer `superd status`, by a listener that is there already or a new one."""
        path = self.current.plan.settings.daemon.control_socket
        if path is not None:
            listener = listener or control_listener(path)
            self.control = ControlSocket(listener, self.selector, partial(answer, self))

    def run(self, ready: Callable[[], None]) -> int:
        """Start the workers, call `ready` once all of them are, and serve; return the exit code."""
        while self._is_up or self.workers.children:
            if self._is_up:
                self._start_due(time.monotonic())
            for key, _ in self.selector.select(self._until_next()):
                key.data()
            self._keep_time()
            if self.is_starting and self.current.is_ready:
                self.state = State.SERVING
                try:
                    ready()
                except SuperdError as error:
                    self.give_up(error.exit_code, str(error))
            self.supervisor.look(self)
        self.close()
        return self.failure[0] if self.failure else ExitCode.OK

    def close(self) -> None:
        """Let go of every address and file."""
        self.bans.save()
        if self.resolving is not None:
            self.resolving.close()
            self.resolving = None
        if self.control is not None:
            self.control.close()
            self.control = None
        self._let_go()

    @property
    def _is_up(self) -> bool:
        return self.state in (State.STARTING, State.SERVING)

    def give_up(self, code: int, text: str) -> None:
        """Stop, since superd cannot start."""
        self.failure = (code, text)
        self.log.error(text)
        self.handle_int()

    # Signals

    def _signalled(self) -> None:
        handlers = {
            signal.SIGTERM: self.handle_term,
            signal.SIGINT: self.handle_int,
            signal.SIGQUIT: self.handle_int,
            signal.SIGHUP: self.handle_hup,
            signal.SIGUSR1: self.handle_usr1,
            signal.SIGUSR2: self.handle_usr2,
            signal.SIGCHLD: self.handle_chld,
        }
        for number in self.signals.taken():
            handlers[signal.Signals(number)]()

    def handle_term(self) -> None:
        """TERM: accept no more, let connections finish for drain-timeout, then stop. A second
        TERM stops at once.
        """
        if not self._is_up:
            self.handle_int()
            return
        self.log.info("stopping: connections may finish")
        self.state = State.DRAINING
        self._let_go()
        self.workers.signal(signal.SIGTERM)
        self._kill_at = time.monotonic() + drain_time(self.current)

    def handle_int(self) -> None:
        """INT, QUIT: stop at once."""
        if self.state is not State.STOPPING:
            self.log.info("stopping at once")
            self.state = State.STOPPING
            self._let_go()
            self.workers.signal(signal.SIGQUIT)
            self._kill_at = time.monotonic() + LAST_WORD

    def handle_hup(self) -> None:
        """HUP: read the configuration anew and go over to it; connections go on under the old one.
        With a mistake in it nothing changes, and the log tells what it is.
        """
        self.changes.wants_reload = True  # at once, or after what is under way

    def handle_usr2(self) -> None:
        """USR2: go over to the program that is installed now, in this very process; connections go
        on. Where it could not serve nothing changes, and the log tells why.
        """
        self.changes.wants_upgrade = True  # at once, or after what is under way

    def handle_usr1(self) -> None:
        """USR1: open log files anew, after they were renamed."""
        self.reopen_logs()

    def reopen_logs(self) -> list[str]:
        """The same; return why some could not be."""
        failures = self.log.reopen()
        if not failures:
            self.log.info("log files reopened")
        return failures

    def handle_chld(self) -> None:
        """CHLD: reap; a worker that has died is replaced."""
        for pid, code in reap():
            if self.resolving is not None and pid == self.resolving.pid:
                self.resolving.ended(code, time.monotonic())
            self.workers.ended(pid, code)

    @property
    def may_change(self) -> bool:
        """Whether it serves, and neither a reload nor an upgrade is under way."""
        return self.is_serving and not self.changes.is_under_way

    def _let_go(self) -> None:
        """Listen no more, since superd stops."""
        self.changes.abandon()
        self.current.watch.close()

    # Time

    def _start_due(self, now: float) -> None:
        if self.resolving is not None:
            self.resolving.keep_running(now)
        self.workers.start_due(now)

    def _until_next(self) -> float:
        """Return the seconds until something is due."""
        times = [self._watch_at]
        if self._is_up:
            times += [place.due for place in self.workers.places if place.due is not None]
        ends = [generation.kill_at for generation in self.workers.generations]
        times += [end for end in (self._kill_at, *ends) if end is not None]
        return max(0.0, min(times) - time.monotonic())

    def _keep_time(self) -> None:
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = now + LAST_WORD
            self.workers.signal(signal.SIGKILL)
        self.workers.kill_late(now)
        if self._is_up:
            self.changes.keep_time(now, may_start=self.is_serving)
        if now >= self._watch_at:
            self._watch_at = now + WATCH
            self._look(now)

    def _look(self, now: float) -> None:
        """Look after everything that is to be looked after now and then."""
        self.workers.look(now)
        if self._is_up:
            self.workers.watchdog.look(self.workers.places, now)
        self.bans.keep_time(now)
        self.rates.look(now, self.current.plan.services)
        if self.control is not None:
            self.control.look()
        self.workers.end_serving(self.current.watch.look())
