"""The status of superd, as JSON for `superd status`.

Runs in the master. Changes nothing; raises nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from superd import __version__
from superd.config.model import EXEC, Service
from superd.listen.failures import grouped
from superd.listen.listener import dropped_datagrams
from superd.master.context import Context
from superd.master.plan.pools import Pool
from superd.master.workers.generation import Generation, Slot
from superd.net.addresses import Transport
from superd.observe.rows import Rows
from superd.process.procfs import usage_of


def outline(context: Context) -> dict[str, Any]:
    """Return the part of the status that takes the same time however many services there are,
    apart from addresses that could not be bound.
    `texts` is a digest of the configuration's files as they were when it was read.
    """
    return {
        "version": __version__,
        "pid": os.getpid(),
        "state": context.state.value,
        "since": context.since,
        "configuration": str(context.current.plan.settings.file),
        "log-failures": context.log.failures,
        "bans": len(context.bans),
        "log-level": context.log.level,
        "overrides": context.overrides,
        "texts": context.current.plan.settings.digest,
        "pending": [
            {"service": service, "addresses": addresses, "why": why}
            for service, addresses, why in pending_addresses(context.current)
        ],
    }


def status(context: Context) -> dict[str, Any]:
    """Return the state of the master, its workers and services."""
    return {
        **outline(context),
        "workers": [_worker(slot) for slot in context.slots],
        "resolver": context.resolver.pid if context.resolver is not None else None,
        "services": [
            _service(context, pool, name)
            for pool in context.current.plan.pools
            for name in pool.services
        ],
        "leaving": _leaving(context),
        "broken": context.current.plan.broken,
        "generation": context.current.number,
        "reload": _reload(context),
        "upgrade": _upgrade(context),
    }


def why_not_ready(context: Context) -> str:
    """Return why superd does not serve all of its services, or "" if it does."""
    if not context.is_serving:
        return f"superd is {context.state.value}"
    ready = {slot.pool.name for slot in context.current.slots if state_of(slot) == "ready"}
    missing = [pool.name for pool in context.current.plan.pools if pool.name not in ready]
    if missing:
        return f"no worker of pool {', '.join(missing)} is ready"
    return "\n".join(
        f"service.{service} does not listen on {addresses} yet: {why}"
        for service, addresses, why in pending_addresses(context.current)
    )


def pending_addresses(generation: Generation) -> list[tuple[str, str, str]]:
    """Return service, addresses and cause of what could not be bound yet, one for each cause."""
    found = (one.failure for one in generation.listeners.pending)
    failures = [failure for failure in found if failure is not None]
    return list(grouped(failures, lambda failure: failure.service))


def state_of(slot: Slot) -> str:
    """Return what the worker of a slot does, or why there is none."""
    if slot.child is None:
        return "ended" if slot.due is None else "throttled"
    if slot.generation.drains:
        return "draining"
    return "ready" if slot.child.ready else "starting"


def _worker(slot: Slot) -> dict[str, Any]:
    child = slot.child
    known: dict[str, Any] = {
        "pool": slot.pool.name,
        "generation": slot.generation.number,
        "state": state_of(slot),
    }
    if child is None:
        return {**known, "pid": None, "uptime": None, "cpu": None, "memory": None}
    uptime = round(time.monotonic() - child.started, 3)
    return {**known, "pid": child.pid, "uptime": uptime, **_used(child.pid)}


def _used(pid: int) -> dict[str, float | int | None]:
    """Return the processor time (seconds) and memory (bytes) of a process."""
    usage = usage_of(pid)
    if usage is None:
        return {"cpu": None, "memory": None}
    return {"cpu": usage.cpu, "memory": usage.memory}


def _reload(context: Context) -> dict[str, Any] | None:
    """Return the result of the last reload."""
    if not context.reloads:
        return None
    last = context.reloads[-1]
    return {"number": last.number, "state": last.state, "problems": last.problems}


def _upgrade(context: Context) -> dict[str, Any] | None:
    """Return the result of the last upgrade."""
    upgrade = context.upgrade
    return None if upgrade is None else {"number": upgrade.number, **upgrade.report()}


def _leaving(context: Context) -> dict[str, int]:
    """Return by name how many connections are left of services that were removed or disabled."""
    known = {name for child in context.children for name in child.services}
    removed = known & context.tally.roster.numbers.keys() - context.current.plan.services.keys()
    active = {name: sum(context.tally.scoreboard.active(name)) for name in sorted(removed)}
    return {name: number for name, number in active.items() if number}


def _rows(context: Context, service: str) -> Rows:
    """Return the rows that a service shows. If several workers show some, each row has its pid."""
    children = [slot.child for slot in context.current.slots if slot.child is not None]
    showing = [child for child in children if child.rows.get(service)]
    if len(showing) == 1:
        return showing[0].rows[service]
    return [{"worker": child.pid, **row} for child in showing for row in child.rows[service]]


def _sees_bytes(entry: Service) -> bool:
    """Return whether the bytes of a service are counted: those of programs are by tcp only, and not
    where a program or a plugin has the listening socket.
    """
    by_tcp = all(address.transport is Transport.TCP for address in entry.listen)
    return not entry.wait and (entry.plugin != EXEC or by_tcp)


def _service(context: Context, pool: Pool, name: str) -> dict[str, Any]:
    sockets = [(address, sock) for _, address, sock in context.current.listeners.sockets({name})]
    sums = context.tally.scoreboard.sums(name)
    full = 0
    with contextlib.suppress(OSError):  # not every system counts these
        full = sum(
            dropped_datagrams(sock)
            for address, sock in sockets
            if address.transport is Transport.UDP
        )
    return {
        "name": name,
        "plugin": pool.services[name].plugin,
        "pool": pool.name,
        "listen": [str(address) for address, _ in sockets],
        "counts": {**sums.by_name, "dropped": full},
        "sees-bytes": _sees_bytes(pool.services[name]),
        "rate": context.rates.rate(time.monotonic(), name),
        "durations": sums.durations,
        "rows": _rows(context, name),
    }
