"""Supervises the workers of all generations, and the resolver: starts, watches, ends and replaces
them.

Runs in the master. Raises OSError only where a resolver's socket cannot be made. A worker that
cannot be started is retried, at growing intervals.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable

from superd.errors import ExitCode, reason
from superd.master.context import Context
from superd.master.plan.plan import Plan
from superd.master.resolver import Resolver
from superd.master.workers.child import ALLOWANCE, Child, start_worker
from superd.master.workers.generation import Generation, Slot
from superd.master.workers.messages import MessageReader
from superd.master.workers.watchdog import Watchdog
from superd.net.addresses import Transport
from superd.process.forking import describe_exit
from superd.worker.timeouts import CANCEL_TIMEOUT
from superd.worker.worker import Assignment

START_TIMEOUT = 30.0  # seconds that a worker may take until it is ready
# seconds from asking a worker to end at once to killing it: first its programs have to end
KILL_AFTER = CANCEL_TIMEOUT + 0.5


class Supervisor:
    """Keeps a worker in each slot of the generations that serve or start, and a resolver if one is
    needed. Reads from workers that run already, as after an upgrade.
    """

    def __init__(self, context: Context, messages: MessageReader) -> None:
        self._context = context
        self._messages = messages
        self._watchdog = Watchdog(context.log)
        for child in context.children:
            messages.listen_to(child)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all workers."""
        for generation in self._context.generations:
            generation.signal(number)

    def provide_resolver(self, plan: Plan) -> None:
        """Create a resolver if the workers of a plan need one. Call it before they start, since
        they are given its address.
        """
        context = self._context
        if plan.needs_resolver:
            context.resolver = context.resolver or Resolver(context.log)
            context.resolver.admit_users_of(plan.pools)

    def keep_resolver_for(self, plan: Plan) -> None:
        """End the resolver if the workers of a plan need none; else provide it."""
        context = self._context
        if context.resolver is not None and not plan.needs_resolver:
            context.resolver.close()
            context.resolver = None
        self.provide_resolver(plan)

    def start_due(self, now: float) -> None:
        """Start the resolver and the workers whose start is due."""
        if self._context.resolver is not None:
            self._context.resolver.keep_running(now)
        for slot in self._context.slots:
            is_due = slot.due is not None and slot.due <= now
            if is_due and slot.child is None and not slot.generation.drains:
                self._start(slot)

    def retire(self, generation: Generation) -> None:
        """Have the workers of a generation drain; none of them is replaced."""
        limit = generation.plan.settings.daemon.reload_drain_timeout
        generation.retire(time.monotonic() + limit + 2 * CANCEL_TIMEOUT if limit else None)
        self._forget_if_empty(generation)

    def ended(self, pid: int, code: int) -> None:
        """Replace the worker or the resolver that has ended and was reaped, if it was one."""
        self._context.orphans.reaped(pid)
        resolver = self._context.resolver
        if resolver is not None and pid == resolver.pid:
            resolver.ended(code, time.monotonic())
        for slot in self._context.slots:
            if slot.child and slot.child.pid == pid:
                self._ended(slot, slot.child, code)

    def replace_workers_of(self, services: Iterable[tuple[str, str]]) -> None:
        """Kill the workers of some services, each for a reason; their slots are filled again."""
        for service, why in services:
            for slot in self._context.slots:
                is_served = service in slot.pool.services and not slot.generation.drains
                if slot.child and is_served:
                    slot.child.end(why)

    def kill_overdue(self, now: float) -> None:
        """Kill the workers whose time to drain is over."""
        for generation in self._context.generations:
            if generation.kill_at is not None and now >= generation.kill_at:
                generation.kill_at = now + KILL_AFTER
                generation.signal(signal.SIGKILL)

    def check(self, now: float) -> None:
        """Kill workers that hang, are not ready in time or have closed their channel; let the
        others send messages again.
        """
        for child in self._context.children:
            if not child.ready and now - child.started > START_TIMEOUT:
                child.end(f"it was not ready within {START_TIMEOUT:.0f} s")
            child.allowance = ALLOWANCE
            if child.has_closed:  # and has not ended, which closes the channel too
                child.end("it closed its channel to the master")
            else:
                self._messages.listen_to(child)
        if self._context.is_up:
            self._watchdog.check(self._context.slots, now)

    def _start(self, slot: Slot) -> None:
        context, generation, pool = self._context, slot.generation, slot.pool
        listeners, settings = generation.listeners, generation.plan.settings
        self.replace_workers_of(listeners.renew_lost())
        context.serial += 1
        assignment = Assignment(
            serial=context.serial,
            place=slot.number,
            is_first=slot.is_first,
            pool=pool.name,
            confinement=pool.confinement,
            services=pool.services,
            plugins=generation.plan.plugins,
            sockets=listeners.sockets(pool.services),
            entrances=listeners.entrances(pool.services),
            served_ports={kind: listeners.ports(kind) for kind in (Transport.TCP, Transport.UDP)},
            served_names=listeners.unixgram_names(),
            scoreboard=context.tally.scoreboard,
            ledger=context.tally.ledger,
            bans=context.bans.table,
            limits=settings.daemon,
            file=settings.file,
            resolver="" if context.resolver is None else context.resolver.address,
            drain_timeout=settings.daemon.drain_timeout,
            retire_timeout=settings.daemon.reload_drain_timeout,
            loop=settings.daemon.loop,
            threshold=context.log.threshold,
            is_trial=context.is_trial,
        )
        try:
            slot.child = start_worker(assignment)
        except OSError as error:
            what = f"cannot start a worker of pool {pool.name}: {reason(error)}"
            self._refill(slot, what, ExitCode.FAILED, was_ready=False)
            return
        slot.due = None
        self._messages.listen_to(slot.child)

    def _ended(self, slot: Slot, child: Child, code: int) -> None:
        """Read the rest of a worker's messages, release what it held, and refill its slot."""
        context = self._context
        self._messages.read_rest(child)
        self._watchdog.forget(child)
        child.lifeline.close()
        slot.child = None
        if code:
            self._take_back_listeners(slot)
        lost = context.tally.scoreboard.vacate(slot.number)
        context.tally.ledger.vacate(slot.number)
        ended_for = child.ended_for if code == -signal.SIGKILL else ""
        exit_code, why = child.failure or (ExitCode.FAILED, ended_for)
        what = f"worker {child.pid} of pool {slot.pool.name} {describe_exit(code)}"
        what += f": {why}" if why else ""
        what += f"; {lost} connections were lost with it" if lost else ""
        if slot.generation.drains and (lost or ended_for):
            context.log.error(what)
        self._refill(slot, what, exit_code, was_ready=child.ready)

    def _take_back_listeners(self, slot: Slot) -> None:
        """End the programs of a worker that has died that have its listeners: the next worker
        serves these.
        """
        context = self._context
        inodes = context.current.listeners.inodes(slot.pool.services)
        context.orphans.end_holders(inodes, context.processes, slot.pool.confinement)

    def _refill(self, slot: Slot, what: str, exit_code: int, *, was_ready: bool) -> None:
        """Plan the start of a worker's successor. A generation that starts fails instead: all of
        its workers have to start.
        """
        context, generation = self._context, slot.generation
        if generation.drains:
            generation.slots.remove(slot)
            self._forget_if_empty(generation)
        elif context.is_starting:
            context.give_up(exit_code, what)
        elif context.is_serving and generation is not context.current:
            generation.failure = generation.failure or (exit_code, what)
        elif context.is_serving:
            now = time.monotonic()
            delay = slot.throttle.delay(now, was_ready=was_ready)
            slot.due = now + delay
            context.restarts[slot.pool.name] += 1
            when = f"in {delay:.0f} s" if delay else "now"
            context.log.error(f"{what}; its successor starts {when}")

    def _forget_if_empty(self, generation: Generation) -> None:
        if generation.drains and not generation.slots:
            self._context.generations.remove(generation)


def drain_time(generation: Generation) -> float:
    """Return how many seconds the workers of a generation may take until superd stops."""
    return generation.plan.settings.daemon.drain_timeout + 2 * CANCEL_TIMEOUT
