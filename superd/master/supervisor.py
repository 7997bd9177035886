"""The workers of all generations: started, heard, watched, ended, and replaced when they die.

Runs in the master. Never raises: a worker that cannot be started is tried again, more and more
rarely.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from superd.errors import ExitCode, reason
from superd.master.report.queries import Observing
from superd.master.workers.child import ALLOWANCE, Child, start_worker
from superd.master.workers.generation import Generation, Place
from superd.master.workers.messages import Hearing
from superd.master.workers.watchdog import Watchdog
from superd.net.addresses import Transport
from superd.process.forking import how_it_ended
from superd.worker.lifeline import Lifeline
from superd.worker.timeouts import GRACE
from superd.worker.worker import Assignment

if TYPE_CHECKING:
    from superd.master.master import Master

START_LIMIT = 30.0  # seconds that a worker may take until it is ready
LAST_WORD = 0.5  # seconds from asking a worker to end at once to killing it


class Workers:
    """All workers. `current` is the generation that serves; of the others one may start, and some
    drain.
    """

    def __init__(self, master: Master, current: Generation) -> None:
        self.current = current
        self.generations = [current]
        self.serial = 0  # of the last one that was started
        self.restarts = Counter[str]()  # by pool
        self.hearing = Hearing(master.selector, master.log, master.bans, Observing(master).answer)
        self.watchdog = Watchdog(master.log)
        self._master = master

    @property
    def places(self) -> list[Place]:
        """Those of all generations."""
        return [place for generation in self.generations for place in generation.places]

    @property
    def children(self) -> list[Child]:
        return [place.child for place in self.places if place.child is not None]

    def take_up(self, older: Sequence[Generation], readers: Mapping[int, int]) -> None:
        """Go on with the workers of another program: generations that drain, and the lines of all
        (`readers` are those of their lifelines, by pid).
        """
        self.generations = [*older, self.current]
        for place in self.places:
            if place.child is not None:
                self.hearing.listen_to(place.child)
                due = self._master.tally.scoreboard.due(place.number)
                self.watchdog.watch(place.child, Lifeline(due, readers[place.child.pid]))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all."""
        for generation in self.generations:
            generation.signal(number)

    def start_due(self, now: float) -> None:
        """Start those whose time has come."""
        for place in self.places:
            is_due = place.due is not None and place.due <= now
            if is_due and place.child is None and not place.generation.drains:
                self._start(place)

    def retire(self, generation: Generation) -> None:
        """Have the workers of a generation drain; none of them is replaced."""
        limit = generation.plan.settings.daemon.reload_drain_timeout
        generation.retire(time.monotonic() + limit + 2 * GRACE if limit else None)
        self._forget_if_gone(generation)

    def ended(self, pid: int, code: int) -> None:
        """A process is gone and reaped; if it was a worker, see to its successor."""
        for place in self.places:
            if place.child and place.child.pid == pid:
                self._ended(place, place.child, code)

    def end_serving(self, services: Iterable[tuple[str, str]]) -> None:
        """End those that serve some services, each for a reason; others take their place."""
        for service, why in services:
            for place in self.places:
                is_served = service in place.pool.services and not place.generation.drains
                if place.child and is_served:
                    place.child.end(why)

    def kill_late(self, now: float) -> None:
        """Kill those that were to have drained by now."""
        for generation in self.generations:
            if generation.kill_at is not None and now >= generation.kill_at:
                generation.kill_at = now + LAST_WORD
                generation.signal(signal.SIGKILL)

    def look(self, now: float) -> None:
        """End those that are not ready in time or have broken their line; hear the others again."""
        for child in self.children:
            if not child.ready and now - child.started > START_LIMIT:
                child.end(f"it was not ready within {START_LIMIT:.0f} s")
            child.allowance = ALLOWANCE
            if child.has_closed:  # and has not ended, which closes the line too
                child.end("it broke its line to the master")
            else:
                self.hearing.listen_to(child)

    def _start(self, place: Place) -> None:
        master, generation, pool = self._master, place.generation, place.pool
        watch, settings = generation.watch, generation.plan.settings
        self.end_serving(watch.renew_lost())
        self.serial += 1
        assignment = Assignment(
            serial=self.serial,
            place=place.number,
            is_first=place.is_first,
            pool=pool.name,
            confinement=pool.confinement,
            services=pool.services,
            plugins=generation.plan.plugins,
            sockets=watch.sockets(pool.services),
            entrances=watch.entrances(pool.services),
            served_ports={kind: watch.ports(kind) for kind in (Transport.TCP, Transport.UDP)},
            served_names=watch.unixgram_names(),
            scoreboard=master.tally.scoreboard,
            ledger=master.tally.ledger,
            bans=master.bans.table,
            limits=settings.daemon,
            directory=settings.file.parent,
            resolver="" if master.resolving is None else master.resolving.address,
            drain_timeout=settings.daemon.drain_timeout,
            retire_timeout=settings.daemon.reload_drain_timeout,
            loop=settings.daemon.loop,
            threshold=master.log.threshold,
            is_trial=master.is_trial,
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
        """Hear a worker's last words, give back what it held, and see to its successor."""
        self.hearing.hear_last_words(child)
        self.watchdog.forget(child)
        place.child = None
        lost = self._master.tally.scoreboard.vacate(place.number)
        self._master.tally.ledger.vacate(place.number)
        ended_for = child.ended_for if code == -signal.SIGKILL else ""
        exit_code, why = child.failure or (ExitCode.FAILED, ended_for)
        what = f"worker {child.pid} of pool {place.pool.name} {how_it_ended(code)}"
        what += f": {why}" if why else ""
        what += f"; {lost} connections were lost with it" if lost else ""
        if place.generation.drains and (lost or ended_for):
            self._master.log.error(what)
        self._fill_again(place, what, exit_code, was_ready=child.ready)

    def _fill_again(self, place: Place, what: str, exit_code: int, *, was_ready: bool) -> None:
        """See to a worker's successor; but while a generation starts, all workers have to."""
        generation, master = place.generation, self._master
        if generation.drains:
            generation.places.remove(place)
            self._forget_if_gone(generation)
        elif master.is_starting:
            master.give_up(exit_code, what)
        elif master.is_serving and generation is not self.current:
            master.changes.reloads[-1].worker_failed(what, exit_code)
        elif master.is_serving:
            now = time.monotonic()
            delay = place.throttle.delay(now, was_ready=was_ready)
            place.due = now + delay
            self.restarts[place.pool.name] += 1
            when = f"in {delay:.0f} s" if delay else "now"
            master.log.error(f"{what}; its successor starts {when}")

    def _forget_if_gone(self, generation: Generation) -> None:
        if generation.drains and not generation.places:
            self.generations.remove(generation)


def drain_time(generation: Generation) -> float:
    """Return how many seconds the workers of a generation may take until superd stops."""
    return generation.plan.settings.daemon.drain_timeout + 2 * GRACE
