"""The master's loop: signals, workers, listeners, time.

Runs in the master, single-threaded. Never accepts a connection or reads a datagram of a service,
never imports a plugin. A signal handler only queues; `handle_...` below does the work, and its
docstring is the operator's manual.
"""

from __future__ import annotations

import selectors
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import partial

from superd.admission.tally import Tally
from superd.errors import ExitCode, SuperdError, reason
from superd.master.bans import Bans
from superd.master.changes import Changes
from superd.master.children import ALLOWANCE, Child, reap, start_worker
from superd.master.control import ControlSocket, control_listener
from superd.master.generation import Generation, Place
from superd.master.hearing import Hearing
from superd.master.logs import Log
from superd.master.observing import Observing
from superd.master.pidfile import PidFile
from superd.master.plan import Plan
from superd.master.rates import Rates
from superd.master.requests import answer
from superd.master.resolving import Resolving
from superd.master.signals import Signals
from superd.master.supervising import Supervisor
from superd.master.watchdog import Watchdog
from superd.net.addresses import Transport
from superd.net.listeners import Listener
from superd.worker.engine import GRACE
from superd.worker.forking import how_it_ended
from superd.worker.lifeline import Lifeline
from superd.worker.worker import Assignment

WATCH = 0.4  # seconds between looks at the listeners: sabotage is repaired within a second
START_LIMIT = 30.0  # seconds that a worker may take until it is ready
LAST_WORD = 0.5  # seconds from asking a worker to end at once to killing it


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
        self.current = current
        self.generations = [self.current]  # of which the others start, or drain
        self.changes = Changes(self)
        self.restarts = Counter[str]()  # of workers, by pool
        self.overrides: dict[str, bool] = {}  # which services operators have enabled, or disabled
        self.bans = Bans(plan.settings.daemon.ban_file, log)
        self.resolving = resolving
        self.configured(plan)
        self.selector = selectors.DefaultSelector()
        self.hearing = Hearing(self.selector, log, self.bans, Observing(self).answer)
        self.watchdog = Watchdog(log)
        self.control: ControlSocket | None = None
        self.serial = 0  # of the last worker
        self._kill_at: float | None = None
        self._watch_at = 0.0
        self._signals = signals
        self.selector.register(self._signals, selectors.EVENT_READ, self._signalled)

    @property
    def places(self) -> list[Place]:
        """Those of all generations."""
        return [place for generation in self.generations for place in generation.places]

    def take_up(
        self,
        older: Sequence[Generation],
        readers: Mapping[int, int],
        bans: Iterable[object],
    ) -> None:
        """Go on with what another program had besides: generations that drain, the lines of all
        workers (`readers` are those of their lifelines, by pid), and bans.
        """
        self.generations = [*older, self.current]
        for place in self.places:
            if place.child is not None:
                self.hearing.listen_to(place.child)
                due = self.tally.scoreboard.due(place.number)
                self.watchdog.watch(place.child, Lifeline(due, readers[place.child.pid]))
        self.bans.take_up(bans)

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
        while self._is_up or self._living():
            self._start_due()
            for key, _ in self.selector.select(self._until_next()):
                key.data()
            self._keep_time()
            if self.state is State.STARTING and self.current.is_ready:
                self.state = State.SERVING
                try:
                    ready()
                except SuperdError as error:
                    self._give_up(error.exit_code, str(error))
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

    def _give_up(self, code: int, text: str) -> None:
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
        for number in self._signals.taken():
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
        self._signal_all(signal.SIGTERM)
        self._kill_at = time.monotonic() + self._drain_time(self.current)

    def handle_int(self) -> None:
        """INT, QUIT: stop at once."""
        if self.state is not State.STOPPING:
            self.log.info("stopping at once")
            self.state = State.STOPPING
            self._let_go()
            self._signal_all(signal.SIGQUIT)
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
        self.log.reopen()
        self.log.info("log files reopened")

    def handle_chld(self) -> None:
        """CHLD: reap; a worker that has died is replaced."""
        for pid, code in reap():
            if self.resolving is not None and pid == self.resolving.pid:
                self.resolving.ended(code, time.monotonic())
            for place in self.places:
                if place.child and place.child.pid == pid:
                    self._ended(place, place.child, code)

    @property
    def may_change(self) -> bool:
        """Whether it serves, and neither a reload nor an upgrade is under way."""
        return self.state is State.SERVING and not self.changes.is_under_way

    def retire(self, generation: Generation) -> None:
        """Have the workers of a generation drain; none of them is replaced."""
        generation.kill_at = time.monotonic() + self._drain_time(generation)
        generation.signal(signal.SIGTERM)
        generation.places = [place for place in generation.places if place.child]
        self._forget_if_gone(generation)

    def _forget_if_gone(self, generation: Generation) -> None:
        if generation.drains and not generation.places:
            self.generations.remove(generation)

    def _drain_time(self, generation: Generation) -> float:
        return generation.plan.settings.daemon.drain_timeout + 2 * GRACE

    def _let_go(self) -> None:
        """Listen no more, since superd stops."""
        self.changes.abandon()
        self.current.watch.close()

    # Workers

    def _living(self) -> bool:
        return any(place.child for place in self.places)

    def _signal_all(self, number: signal.Signals) -> None:
        for generation in self.generations:
            generation.signal(number)

    def _start_due(self) -> None:
        now = time.monotonic()
        if self.resolving is not None and self._is_up:
            self.resolving.keep_running(now)
        for place in self.places:
            is_due = place.due is not None and place.due <= now
            if self._is_up and is_due and place.child is None and not place.generation.drains:
                self._start(place)

    def _start(self, place: Place) -> None:
        generation, pool = place.generation, place.pool
        self._end_workers(generation.watch.renew_lost())
        self.serial += 1
        assignment = Assignment(
            serial=self.serial,
            place=place.number,
            is_first=place.is_first,
            pool=pool.name,
            confinement=pool.confinement,
            services=pool.services,
            plugins=generation.plan.plugins,
            sockets=generation.watch.sockets(pool.services),
            entrances=generation.watch.entrances(pool.services),
            served_ports={
                transport: generation.watch.ports(transport)
                for transport in (Transport.TCP, Transport.UDP)
            },
            scoreboard=self.tally.scoreboard,
            ledger=self.tally.ledger,
            bans=self.bans.table,
            threshold=self.log.threshold,
            limits=generation.plan.settings.daemon,
            directory=generation.plan.settings.file.parent,
            resolver="" if self.resolving is None else self.resolving.address,
            drain_timeout=generation.plan.settings.daemon.drain_timeout,
            loop=generation.plan.settings.daemon.loop,
            is_trial=self.is_trial,
        )
        try:
            pid, line, lifeline = start_worker(assignment)
        except OSError as error:
            what = f"cannot start a worker of pool {pool.name}: {reason(error)}"
            self._fill_again(place, what, ExitCode.FAILED, was_ready=False)
            return
        place.child = Child(pid, line, time.monotonic(), frozenset(pool.services))
        place.due = None
        self.hearing.listen_to(place.child)
        self.watchdog.watch(place.child, lifeline)

    def _ended(self, place: Place, child: Child, code: int) -> None:
        """A worker is gone and reaped: hear its last words, then see to its successor."""
        self.hearing.hear_last_words(child)
        self.watchdog.forget(child)
        place.child = None
        lost = self.tally.scoreboard.vacate(place.number)
        self.tally.ledger.vacate(place.number)
        ended_for = child.ended_for if code == -signal.SIGKILL else ""
        exit_code, why = child.failure or (ExitCode.FAILED, ended_for)
        what = f"worker {child.pid} of pool {place.pool.name} {how_it_ended(code)}"
        what += f": {why}" if why else ""
        what += f"; {lost} connections were lost with it" if lost else ""
        self._fill_again(place, what, exit_code, was_ready=child.ready)

    def _fill_again(self, place: Place, what: str, exit_code: int, *, was_ready: bool) -> None:
        """See to a worker's successor; but while a generation starts, all workers have to."""
        generation = place.generation
        if generation.drains:
            generation.places.remove(place)
            self._forget_if_gone(generation)
        elif self.state is State.STARTING:
            self._give_up(exit_code, what)
        elif self.state is State.SERVING and generation is not self.current:
            self.changes.reloads[-1].worker_failed(what, exit_code)
        elif self.state is State.SERVING:
            now = time.monotonic()
            delay = place.throttle.delay(now, was_ready=was_ready)
            place.due = now + delay
            self.restarts[place.pool.name] += 1
            when = f"in {delay:.0f} s" if delay else "now"
            self.log.error(f"{what}; its successor starts {when}")

    # Time

    def _until_next(self) -> float:
        """Return the seconds until something is due."""
        times = [self._watch_at]
        if self._is_up:
            times += [place.due for place in self.places if place.due is not None]
        ends = [generation.kill_at for generation in self.generations]
        times += [end for end in (self._kill_at, *ends) if end is not None]
        return max(0.0, min(times) - time.monotonic())

    def _keep_time(self) -> None:
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = now + LAST_WORD
            self._signal_all(signal.SIGKILL)
        for generation in self.generations:
            if generation.kill_at is not None and now >= generation.kill_at:
                generation.kill_at = now + LAST_WORD
                generation.signal(signal.SIGKILL)
        if self._is_up:
            self.changes.keep_time(now, may_start=self.state is State.SERVING)
        if now >= self._watch_at:
            self._watch_at = now + WATCH
            self._watch_workers(now)
            if self._is_up:
                self.watchdog.look(self.places, now)
            self.bans.keep_time(now)
            self.rates.look(now, self.current.plan.services)
            if self.control is not None:
                self.control.look()
            self._end_workers(self.current.watch.look())

    def _watch_workers(self, now: float) -> None:
        for child in (place.child for place in self.places if place.child):
            if not child.ready and now - child.started > START_LIMIT:
                child.end(f"it was not ready within {START_LIMIT:.0f} s")
            child.allowance = ALLOWANCE
            if child.has_closed:  # and has not ended, which closes the line too
                child.end("it broke its line to the master")
            else:
                self.hearing.listen_to(child)

    def _end_workers(self, services: Iterable[tuple[str, str]]) -> None:
        for service, why in services:
            for place in self.places:
                is_served = service in place.pool.services and not place.generation.drains
                if place.child and is_served:
                    place.child.end(why)
