"""What `superd status` shows.

Runs in the master. Only looks; never raises.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from superd import __version__
from superd.listen.listeners import dropped
from superd.master.plan.pools import Pool
from superd.net.addresses import Transport
from superd.observe.rows import Rows
from superd.process.procfs import usage_of

if TYPE_CHECKING:
    from superd.master.master import Master
    from superd.master.workers.generation import Place


def outline(master: Master) -> dict[str, Any]:
    """Return what is told quickly, however many services there are. `texts` stands for what the
    files of the configuration said when it was read.
    """
    return {
        "version": __version__,
        "pid": os.getpid(),
        "state": master.state.value,
        "since": master.since,
        "configuration": str(master.current.plan.settings.file),
        "log-failures": master.log.failures,
        "bans": len(master.bans),
        "log-level": master.log.level,
        "overrides": master.overrides,
        "texts": master.current.plan.settings.digest,
    }


def status(master: Master) -> dict[str, Any]:
    """Return the state of the master, its workers and services."""
    return {
        **outline(master),
        "workers": [_worker(place) for place in master.workers.places],
        "resolver": master.resolving.pid if master.resolving is not None else None,
        "services": [
            _service(master, pool, name)
            for pool in master.current.plan.pools
            for name in pool.services
        ],
        "leaving": _leaving(master),
        "broken": master.current.plan.broken,
        "generation": master.current.number,
        "reload": _reload(master),
        "upgrade": _upgrade(master),
    }


def why_not_ready(master: Master) -> str:
    """Return what keeps superd from serving all that it is to serve; "" for nothing."""
    if master.state.value != "serving":
        return f"superd is {master.state.value}"
    ready = {place.pool.name for place in master.current.places if state_of(place) == "ready"}
    missing = [pool.name for pool in master.current.plan.pools if pool.name not in ready]
    return f"no worker of pool {', '.join(missing)} is ready" if missing else ""


def state_of(place: Place) -> str:
    """Return what the worker of a place is doing, or why there is none."""
    if place.child is None:
        return "ended" if place.due is None else "throttled"
    if place.generation.drains:
        return "draining"
    return "ready" if place.child.ready else "starting"


def _worker(place: Place) -> dict[str, Any]:
    child = place.child
    known: dict[str, Any] = {
        "pool": place.pool.name,
        "generation": place.generation.number,
        "state": state_of(place),
    }
    if child is None:
        return {**known, "pid": None, "uptime": None, "cpu": None, "memory": None}
    uptime = round(time.monotonic() - child.started, 3)
    return {**known, "pid": child.pid, "uptime": uptime, **_used(child.pid)}


def _used(pid: int) -> dict[str, float | int | None]:
    """Return what a process has used: seconds of processor time, and bytes of memory."""
    usage = usage_of(pid)
    if usage is None:
        return {"cpu": None, "memory": None}
    return {"cpu": usage.cpu, "memory": usage.memory}


def _reload(master: Master) -> dict[str, Any] | None:
    """Return how the last reload went."""
    if not master.changes.reloads:
        return None
    last = master.changes.reloads[-1]
    return {"number": last.number, "state": last.state, "problems": last.problems}


def _upgrade(master: Master) -> dict[str, Any] | None:
    """Return how the last upgrade went."""
    upgrade = master.changes.upgrade
    return None if upgrade is None else {"number": upgrade.number, **upgrade.report()}


def _leaving(master: Master) -> dict[str, int]:
    """Return how many connections go on of services that are served no more, by name."""
    known = {name for child in master.workers.children for name in child.services}
    gone = known & master.tally.roster.numbers.keys() - master.current.plan.services.keys()
    active = {name: sum(master.tally.scoreboard.active(name)) for name in sorted(gone)}
    return {name: number for name, number in active.items() if number}


def _rows(master: Master, service: str) -> Rows:
    """Return what a service has to show; each worker has its own view, so it says whose."""
    children = [place.child for place in master.current.places if place.child is not None]
    showing = [child for child in children if child.rows.get(service)]
    if len(showing) == 1:
        return showing[0].rows[service]
    return [{"worker": child.pid, **row} for child in showing for row in child.rows[service]]


def _service(master: Master, pool: Pool, name: str) -> dict[str, Any]:
    sockets = [(address, sock) for _, address, sock in master.current.watch.sockets({name})]
    sums = master.tally.scoreboard.sums(name)
    full = 0
    with contextlib.suppress(OSError):  # not every system counts these
        full = sum(dropped(sock) for address, sock in sockets if address.transport is Transport.UDP)
    return {
        "name": name,
        "plugin": pool.services[name].plugin,
        "pool": pool.name,
        "listen": [str(address) for address, _ in sockets],
        "counts": {**sums.by_name, "dropped": full},
        "rate": master.rates.rate(time.monotonic(), name),
        "durations": sums.durations,
        "rows": _rows(master, name),
    }
