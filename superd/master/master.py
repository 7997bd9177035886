"""The master's loop: signals, timers, start and stop.

Runs in the master, single-threaded. Never accepts a connection, reads a datagram of a service or
imports a plugin. A signal handler only queues the signal; `handle_...` below acts on it, and its
docstring is the operator's manual.
"""

from __future__ import annotations

import selectors
import signal
import time
from collections.abc import Callable

from superd.errors import ExitCode, SuperdError
from superd.listen.listener import Listener
from superd.master.change.changes import Changes
from superd.master.commands import Commands
from superd.master.context import Context, MasterState
from superd.master.control_socket import ControlSocket, control_listener
from superd.master.pending import PendingAddresses
from superd.master.report.queries import ReportQueries
from superd.master.supervisor import KILL_AFTER, Supervisor, drain_time
from superd.master.workers.child import reap
from superd.master.workers.messages import MessageReader
from superd.master.workers.reopening import reopen_files, reopen_late

CHECK_INTERVAL = 0.4  # seconds: a listener that a worker broke is repaired within a second


class Master:
    """Runs the workers of all pools until a signal stops superd."""

    def __init__(self, context: Context) -> None:
        self.context = context
        queries = ReportQueries(context)
        messages = MessageReader(context.selector, context.log, context.bans, queries.answer)
        self.supervisor = Supervisor(context, messages)
        self.changes = Changes(context, self.supervisor)
        self.pending = PendingAddresses(context)
        self._kill_at: float | None = None
        self._check_at = 0.0
        plan = context.current.plan
        context.bans.protect(plan.settings.daemon.never_ban)
        self.supervisor.keep_resolver_for(plan)
        context.selector.register(context.signals, selectors.EVENT_READ, self._signalled)

    def open_control(self, listener: Listener | None = None) -> None:
        """Answer operators' commands, on a new listener or on one handed over by an upgrade."""
        context = self.context
        path = context.current.plan.settings.daemon.control_socket
        if path is not None:
            listener = listener or control_listener(path)
            commands = Commands(context, self.changes)
            context.control = ControlSocket(listener, context.selector, commands.answer)

    def run(self, ready: Callable[[], None]) -> int:
        """Start the workers, call `ready` once all of them are, and serve; return the exit code."""
        context = self.context
        context.orphans.adopt()
        while context.is_up or context.children:
            if context.is_up:
                self.supervisor.start_due(time.monotonic())
            for key, _ in context.selector.select(self._until_next()):
                key.data()
            self._tick()
            if context.is_starting and context.current.is_ready:
                context.state = MasterState.SERVING
                try:
                    ready()
                except SuperdError as error:
                    context.give_up(error.exit_code, str(error))
            if context.failure is not None:
                self.handle_int()
            context.notifier.send_changes(context.phase, context.current, context.reload_failure)
        self.close()
        context.orphans.end_all()
        return context.failure[0] if context.failure else ExitCode.OK

    def close(self) -> None:
        """Release every address and file."""
        context = self.context
        context.bans.save()
        if context.resolver is not None:
            context.resolver.close()
            context.resolver = None
        if context.control is not None:
            context.control.close()
            context.control = None
        self._stop_listening()

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
        for number in self.context.signals.take():
            handlers[signal.Signals(number)]()

    def handle_term(self) -> None:
        """TERM: stop accepting, let connections finish within drain-timeout, then stop. A second
        TERM stops at once.
        """
        if not self.context.is_up:
            self.handle_int()
            return
        self.context.log.info("stopping: connections may finish")
        self.context.state = MasterState.DRAINING
        self._stop_listening()
        self.supervisor.signal(signal.SIGTERM)
        self._kill_at = time.monotonic() + drain_time(self.context.current)

    def handle_int(self) -> None:
        """INT, QUIT: stop at once."""
        if self.context.state is not MasterState.STOPPING:
            self.context.log.info("stopping at once")
            self.context.state = MasterState.STOPPING
            self._stop_listening()
            self.supervisor.signal(signal.SIGQUIT)
            self._kill_at = time.monotonic() + KILL_AFTER

    def handle_hup(self) -> None:
        """HUP: reload the configuration; connections continue under the old one. If the new
        configuration has a mistake, nothing changes and the log names the mistake.
        """
        self.changes.wants_reload = True  # at once, or after the change that is under way

    def handle_usr2(self) -> None:
        """USR2: upgrade to the program that is installed now, in this very process; connections
        continue. If the new program could not serve, nothing changes and the log says why.
        """
        self.changes.wants_upgrade = True  # at once, or after the change that is under way

    def handle_usr1(self) -> None:
        """USR1: reopen log files, also those of plugins, after they were renamed."""
        reopen_files(self.context).begin(lambda _: None)

    def handle_chld(self) -> None:
        """CHLD: reap; a worker that died is replaced."""
        for pid, code in reap():
            self.supervisor.ended(pid, code)

    def _stop_listening(self) -> None:
        """Close all listeners, since superd stops."""
        self.changes.abandon()
        self.pending.close()
        self.context.current.listeners.close()

    # Time

    def _until_next(self) -> float:
        """Return the seconds until something is due."""
        context = self.context
        times = [self._check_at]
        if (kill_at := context.orphans.next_kill) is not None:
            times.append(kill_at)
        if context.is_up:
            times += [slot.due for slot in context.slots if slot.due is not None]
        ends = [generation.kill_at for generation in context.generations]
        times += [end for end in (self._kill_at, *ends) if end is not None]
        return max(0.0, min(times) - time.monotonic())

    def _tick(self) -> None:
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = now + KILL_AFTER
            self.supervisor.signal(signal.SIGKILL)
        self.supervisor.kill_overdue(now)
        self.context.orphans.tick(now)
        if self.context.is_up:
            self.changes.tick(now)
        if now >= self._check_at:
            self._check_at = now + CHECK_INTERVAL
            self._check(now)

    def _check(self, now: float) -> None:
        """Check workers, their files, bans, rates, the control socket, the listeners and pending
        addresses.
        """
        context = self.context
        self.supervisor.check(now)
        reopen_late(context)
        context.bans.tick(now)
        context.ban_filters.update(context.current.listeners)
        context.rates.sample(now, context.current.plan.services)
        if context.control is not None:
            context.control.check()
        self.supervisor.replace_workers_of(context.current.listeners.check())
        self.pending.tick(now)
