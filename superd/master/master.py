"""The master's loop: signals, workers, listeners, time.

Runs in the master, single-threaded. Never accepts a connection or reads a datagram of a service,
never imports a plugin. A signal handler only queues; `handle_...` below does the work, and its
docstring is the operator's manual.
"""

from __future__ import annotations

import selectors
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

from superd.admission.ledger import Ledger
from superd.admission.rules import needs_names
from superd.admission.scoreboard import Scoreboard
from superd.errors import ExitCode, SuperdError, reason
from superd.master.bans import Bans
from superd.master.children import ALLOWANCE, Child, Throttle, fork_child, how_it_ended, reap
from superd.master.control import ControlSocket
from superd.master.logs import Log
from superd.master.plan import Plan
from superd.master.pools import Pool
from superd.master.requests import answer
from superd.master.resolving import Resolving
from superd.master.signals import Signals
from superd.master.watch import Watch
from superd.net.listeners import Listener
from superd.net.patterns import parse_network, shown_network
from superd.observe.connections import pattern_of
from superd.observe.records import decoded
from superd.worker import channel
from superd.worker.engine import GRACE
from superd.worker.worker import Assignment
from superd.worker.worker import main as worker_main

WATCH = 0.4  # seconds between looks at the listeners: sabotage is repaired within a second
START_LIMIT = 30.0  # seconds that a worker may take until it is ready
LAST_WORD = 0.5  # seconds from asking a worker to end at once to killing it


class State(Enum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"


@dataclass(eq=False)
class Place:
    """Where one worker of a pool belongs, and a row of the scoreboard."""

    number: int
    pool: Pool
    throttle: Throttle  # the pool's
    child: Child | None = None
    due: float | None = 0.0  # when to start the next worker


class Master:
    """Keeps the workers of all pools running until it is told to stop."""

    def __init__(self, plan: Plan, listeners: list[Listener], log: Log, signals: Signals) -> None:
        self.plan = plan
        self.log = log
        self.watch = Watch(listeners, log)
        self.state = State.STARTING
        self.since = time.time()
        self.failure: tuple[int, str] | None = None
        self.places: list[Place] = []
        for pool in plan.pools:
            throttle = Throttle()
            for _ in range(pool.workers):
                self.places.append(Place(len(self.places), pool, throttle))
        self.scoreboard = Scoreboard(list(plan.services), len(self.places))
        self.ledger = Ledger(list(plan.services), len(self.places))
        self.bans = Bans(plan.settings.daemon.ban_file, plan.settings.daemon.never_ban, log)
        entries = plan.services.values()
        self.resolving = Resolving(plan.pools, log) if any(map(needs_names, entries)) else None
        self.selector = selectors.DefaultSelector()
        self.control: ControlSocket | None = None
        self._serial = 0
        self._kill_at: float | None = None
        self._watch_at = 0.0
        self._signals = signals
        self.selector.register(self._signals, selectors.EVENT_READ, self._signalled)

    def open_control(self) -> None:
        """Answer `superd status`."""
        path = self.plan.settings.daemon.control_socket
        if path is not None:
            self.control = ControlSocket(path, self.selector, partial(answer, self))

    def run(self, ready: Callable[[], None]) -> int:
        """Start the workers, call `ready` once all of them are, and serve; return the exit code."""
        while self._is_up or self._living():
            self._start_due()
            for key, _ in self.selector.select(self._until_next()):
                key.data()
            self._keep_time()
            if self.state is State.STARTING and all(p.child and p.child.ready for p in self.places):
                self.state = State.SERVING
                try:
                    ready()
                except SuperdError as error:
                    self._give_up(error.exit_code, str(error))
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
        self.watch.close()

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
        self.watch.close()
        self._signal_all(signal.SIGTERM)
        self._kill_at = time.monotonic() + self.plan.settings.daemon.drain_timeout + 2 * GRACE

    def handle_int(self) -> None:
        """INT, QUIT: stop at once."""
        if self.state is not State.STOPPING:
            self.log.info("stopping at once")
            self.state = State.STOPPING
            self.watch.close()
            self._signal_all(signal.SIGQUIT)
            self._kill_at = time.monotonic() + LAST_WORD

    def handle_hup(self) -> None:
        """HUP: nothing yet; restart superd to have a changed configuration read."""
        self.log.warning("HUP: the configuration is read at start only; the service goes on")

    def handle_usr2(self) -> None:
        """USR2: nothing yet; it is kept for an upgrade in place."""
        self.log.warning("USR2: an upgrade takes a restart; the service goes on")

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

    # Workers

    def _living(self) -> bool:
        return any(place.child for place in self.places)

    def _signal_all(self, number: signal.Signals) -> None:
        for place in self.places:
            if place.child:
                place.child.signal(number)

    def _start_due(self) -> None:
        now = time.monotonic()
        if self.resolving is not None and self._is_up:
            self.resolving.keep_running(now)
        for place in self.places:
            is_due = place.due is not None and place.due <= now
            if self._is_up and is_due and place.child is None:
                self._start(place)

    def _start(self, place: Place) -> None:
        self._end_workers(self.watch.renew_lost())
        self._serial += 1
        pool = place.pool
        assignment = Assignment(
            serial=self._serial,
            place=place.number,
            pool=pool.name,
            confinement=pool.confinement,
            services=pool.services,
            plugins=self.plan.plugins,
            sockets=self.watch.sockets(pool.services),
            served_ports=self.watch.udp_ports(),
            scoreboard=self.scoreboard,
            ledger=self.ledger,
            bans=self.bans.table,
            limits=self.plan.settings.daemon,
            directory=self.plan.settings.file.parent,
            resolver="" if self.resolving is None else self.resolving.address,
            drain_timeout=self.plan.settings.daemon.drain_timeout,
            loop=self.plan.settings.daemon.loop,
        )
        try:
            pid, line = fork_child(partial(worker_main, assignment))
        except OSError as error:
            what = f"cannot start a worker of pool {pool.name}: {reason(error)}"
            self._fill_again(place, what, ExitCode.FAILED, was_ready=False)
            return
        child = Child(pid, line, time.monotonic(), pattern_of(pid, list(pool.services)))
        place.child, place.due = child, None
        self._listen_to(child)

    def _listen_to(self, child: Child) -> None:
        self.selector.register(child.channel, selectors.EVENT_READ, partial(self._heard, child))

    def _is_listened_to(self, child: Child) -> bool:
        return child.channel.fileno() >= 0 and child.channel in self.selector.get_map()

    def _heard(self, child: Child) -> None:
        """Take a worker's messages, until they end or become a flood."""
        if not self._is_listened_to(child):
            return  # it was reaped in the same turn of the loop
        self._take_all(child)
        if child.has_closed or not child.allowance:
            self.selector.unregister(child.channel)

    def _take_all(self, child: Child) -> None:
        try:
            for message in child.messages():
                self._take(child, message)
        except (ValueError, TypeError, KeyError) as error:
            self.log.error(f"worker {child.pid} sent what is no message: {error}")
            child.has_closed = True

    def _take(self, child: Child, message: dict[str, Any] | bytes) -> None:
        if isinstance(message, bytes):
            self.log.write_events(message)
            return
        kind = message.pop("kind")
        if kind == channel.LOG:
            self.log.write(decoded(message, child.pid))
        elif kind == channel.READY:
            child.ready = True
        elif kind == channel.FAILED:
            child.failure = (ExitCode(message["exit_code"]), str(message["text"]))
        elif kind == channel.BAN:
            self._ban(child, message)
        else:
            raise ValueError(f"unknown kind {kind!r}")

    def _ban(self, child: Child, message: dict[str, Any]) -> None:
        """Ban whom a plugin wants banned; what a worker says is believed as far as it may ban."""
        (place,) = (place for place in self.places if place.child is child)
        service, seconds, why = message["service"], message["seconds"], message["reason"]
        if service not in place.pool.services or not isinstance(why, str):
            raise ValueError("a ban by a service that is not its own")
        network = parse_network(message["network"])
        known = network in self.bans
        if error := self.bans.add(network, float(seconds), f"service {service}", why):
            self.log.warning(f"not banned: {error}", service)
        elif not known:
            self.log.info(f"banned {shown_network(network)} for {float(seconds):.0f} s", service)

    def _ended(self, place: Place, child: Child, code: int) -> None:
        """A worker is gone and reaped: hear its last words, then see to its successor."""
        if self._is_listened_to(child):
            self.selector.unregister(child.channel)
        child.allowance = ALLOWANCE
        self._take_all(child)
        child.channel.close()
        place.child = None
        lost = self.scoreboard.vacate(place.number)
        self.ledger.vacate(place.number)
        ended_for = child.ended_for if code == -signal.SIGKILL else ""
        exit_code, why = child.failure or (ExitCode.FAILED, ended_for)
        what = f"worker {child.pid} of pool {place.pool.name} {how_it_ended(code)}"
        what += f": {why}" if why else ""
        what += f"; {lost} connections were lost with it" if lost else ""
        self._fill_again(place, what, exit_code, was_ready=child.ready)

    def _fill_again(self, place: Place, what: str, exit_code: int, *, was_ready: bool) -> None:
        """See to a worker's successor; but while superd starts, all workers have to."""
        if self.state is State.STARTING:
            self._give_up(exit_code, what)
        elif self.state is State.SERVING:
            now = time.monotonic()
            delay = place.throttle.delay(now, was_ready=was_ready)
            place.due = now + delay
            when = f"in {delay:.0f} s" if delay else "now"
            self.log.error(f"{what}; its successor starts {when}")

    # Time

    def _until_next(self) -> float:
        """Return the seconds until something is due."""
        times = [self._watch_at]
        if self._is_up:
            times += [place.due for place in self.places if place.due is not None]
        if self._kill_at is not None:
            times.append(self._kill_at)
        return max(0.0, min(times) - time.monotonic())

    def _keep_time(self) -> None:
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = now + LAST_WORD
            self._signal_all(signal.SIGKILL)
        if now >= self._watch_at:
            self._watch_at = now + WATCH
            self._watch_workers(now)
            self.bans.keep_time(now)
            if self.control is not None:
                self.control.look()
            self._end_workers(self.watch.look())

    def _watch_workers(self, now: float) -> None:
        for child in (place.child for place in self.places if place.child):
            if not child.ready and now - child.started > START_LIMIT:
                child.end(f"it was not ready within {START_LIMIT:.0f} s")
            child.allowance = ALLOWANCE
            if child.has_closed:  # and has not ended, which closes the line too
                child.end("it broke its line to the master")
            elif not self._is_listened_to(child):
                self._listen_to(child)

    def _end_workers(self, services: Iterable[tuple[str, str]]) -> None:
        for service, why in services:
            for place in self.places:
                if place.child and service in place.pool.services:
                    place.child.end(why)
