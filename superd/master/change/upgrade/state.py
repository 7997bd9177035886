"""What a master passes on to the program that takes its place, as JSON in a file without a name.

Runs in the master, in both programs. Raises SuperdError where the state is of another kind than
this program knows, or a descriptor is not what it says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from superd import __version__
from superd.admission.memory import nameless_file
from superd.errors import SuperdError
from superd.listen.listeners import Listener
from superd.master.change.reload import RUNTIME_FILES
from superd.net.addresses import Address, Transport

if TYPE_CHECKING:
    from superd.master.master import Master
    from superd.master.workers.generation import Place

FORMAT = 1

State = dict[str, Any]


class _Descriptors:
    """The descriptors that a state names, with the inode of each."""

    def __init__(self) -> None:
        self.inodes: dict[int, int] = {}

    def noted(self, descriptor: int) -> int | None:
        """Return a descriptor; None for one that is closed."""
        if descriptor < 0:
            return None
        self.inodes[descriptor] = os.fstat(descriptor).st_ino
        return descriptor


def write(master: Master, number: int) -> tuple[int, list[int]]:
    """Write down the state; return its descriptor, and all that the next program needs.

    `number` is that of the upgrade.
    """
    found = _Descriptors()
    plan, tally = master.current.plan, master.tally.passed_on()
    for memory in ("scoreboard", "ledger", "bans"):
        found.noted(tally[memory])
    state = {
        "format": FORMAT,
        "version": __version__,
        "upgrade": number,
        "in background": master.in_background,
        "since": master.since,
        "file": str(plan.settings.file),
        "texts": plan.settings.texts,
        "runtime files": {
            key: path and str(path)
            for key in RUNTIME_FILES
            for path in [getattr(plan.settings.daemon, key)]
        },
        "broken": plan.broken,
        "overrides": master.overrides,
        "log level": master.log.level,
        "looking up": plan.looking_up,
        "generation": master.current.number,
        "generation since": master.current.since,
        "reload": master.changes.reload_number,
        "serial": master.workers.serial,
        "restarts": master.workers.restarts,
        "tally": tally,
        "bans": master.bans.listed(),
        "stored": master.supervisor.store.passed_on(),
        "pid file": None if master.pid_file is None else found.noted(master.pid_file.descriptor),
        "control": None if master.control is None else _listener(master.control.listener, found),
        "resolver": None
        if master.resolving is None
        else found.noted(master.resolving.listener.fileno()),
        "listeners": [_listener(one, found) for one in master.current.watch.listeners],
        "places": [_place(place, master, found) for place in master.workers.places],
    }
    text = json.dumps({**state, "descriptors": list(found.inodes.items())})
    descriptor = nameless_file("state")
    with open(os.dup(descriptor), "w", encoding="ascii") as file:
        file.write(text)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor, [descriptor, *found.inodes]


def read(descriptor: int) -> State:
    """Read the state, and keep its descriptors from the programs that are started later on."""
    with open(descriptor, encoding="ascii") as file:
        state: State = json.load(file)
    if state["format"] != FORMAT:
        raise SuperdError(
            f"superd {__version__} cannot go on from {state['version']}: restart it instead"
        )
    for number, inode in state["descriptors"]:
        if os.fstat(number).st_ino != inode:
            raise SuperdError(f"descriptor {number} is not what it was")
        os.set_inheritable(number, False)
    return state


def _listener(listener: Listener, found: _Descriptors) -> State:
    entrance = listener.entrance
    return {
        "service": listener.service,
        "asked": _address(listener.asked),
        "address": _address(listener.address),
        "socket": found.noted(listener.socket.fileno()),
        "entrance": None if entrance is None else found.noted(entrance.fileno()),
        "shares port": listener.shares_port,
        "file": listener.file,
        "backlog": listener.backlog,
        "is given": listener.is_given,
    }


def _place(place: Place, master: Master, found: _Descriptors) -> State:
    child = place.child
    return {
        "number": place.number,
        "generation": place.generation.number,
        "drains": place.generation.drains,
        "kill at": place.generation.kill_at,
        "pool": place.pool.name,
        "is first": place.is_first,
        "child": None
        if child is None
        else {
            "pid": child.pid,
            "channel": found.noted(child.channel.fileno()),
            "lifeline": found.noted(master.workers.watchdog.lifeline(child).reader),
            "started": child.started,
            "services": sorted(child.services),
            "ready": child.ready,
            "rows": child.rows,
        },
    }


def _address(address: Address) -> State:
    return {**asdict(address), "transport": address.transport.value}


def address_of(passed: Mapping[str, Any]) -> Address:
    """Return an address of a state."""
    return Address(**{**passed, "transport": Transport(passed["transport"])})
