"""The state that an upgrade passes from the running program to the new one: JSON in a file without
a name.

Runs in the master, in both programs. Raises SuperdError if the state has another format than this
program reads, or a descriptor is not the file that the state names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from superd import __version__
from superd.admission.memory import nameless_file
from superd.errors import ExitCode, SuperdError
from superd.listen.failures import Failure
from superd.listen.listener import Listener
from superd.master.change.reload import RUNTIME_FILES
from superd.master.context import Context
from superd.master.workers.generation import Slot
from superd.net.addresses import Address, Transport

FORMAT = 1

State = dict[str, Any]


class _Descriptors:
    """The descriptors that a state names, with their inodes."""

    def __init__(self) -> None:
        self.inodes: dict[int, int] = {}

    def add(self, descriptor: int) -> int | None:
        """Return the descriptor, or None if it is closed."""
        if descriptor < 0:
            return None
        self.inodes[descriptor] = os.fstat(descriptor).st_ino
        return descriptor


def write(context: Context, number: int) -> tuple[int, list[int]]:
    """Write the state; return its descriptor, and all descriptors that the new program needs.

    `number` is the upgrade's.
    """
    found = _Descriptors()
    plan, tally = context.current.plan, context.tally.as_state()
    for memory in ("scoreboard", "ledger", "bans"):
        found.add(tally[memory])
    state = {
        "format": FORMAT,
        "version": __version__,
        "upgrade": number,
        "in background": context.in_background,
        "since": context.since,
        "file": str(plan.settings.file),
        "texts": plan.settings.texts,
        "runtime files": {
            key: path and str(path)
            for key in RUNTIME_FILES
            for path in [getattr(plan.settings.daemon, key)]
        },
        "broken": plan.broken,
        "overrides": context.overrides,
        "log level": context.log.level,
        "looking up": plan.looking_up,
        "generation": context.current.number,
        "generation since": context.current.since,
        "reload": context.reload_number,
        "serial": context.serial,
        "restarts": context.restarts,
        "foreign": sorted(context.orphans.foreign),
        "tally": tally,
        "bans": context.bans.listed(),
        "stored": context.notifier.fd_store.passed_on(),
        "pid file": None if context.pid_file is None else found.add(context.pid_file.descriptor),
        "control": None if context.control is None else _listener(context.control.listener, found),
        "resolver": None
        if context.resolver is None
        else found.add(context.resolver.listener.fileno()),
        "listeners": [_listener(one, found) for one in context.current.listeners.all],
        "places": [_slot(slot, found) for slot in context.slots],
    }
    text = json.dumps({**state, "descriptors": list(found.inodes.items())})
    descriptor = nameless_file("state")
    with open(os.dup(descriptor), "w", encoding="ascii") as file:
        file.write(text)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor, [descriptor, *found.inodes]


def read(descriptor: int) -> State:
    """Read the state, and make its descriptors close-on-exec again."""
    with open(descriptor, encoding="ascii") as file:
        state: State = json.load(file)
    if state["format"] != FORMAT:
        raise SuperdError(
            f"superd {__version__} cannot take over from {state['version']}: restart superd instead"
        )
    for number, inode in state["descriptors"]:
        if os.fstat(number).st_ino != inode:
            raise SuperdError(f"descriptor {number} is not the file that the state names")
        os.set_inheritable(number, False)
    return state


def _listener(listener: Listener, found: _Descriptors) -> State:
    entrance = listener.entrance
    return {
        "service": listener.service,
        "asked": _address(listener.configured),
        "address": _address(listener.address),
        "socket": found.add(listener.socket.fileno()),
        "entrance": None if entrance is None else found.add(entrance.fileno()),
        "shares port": listener.shares_port,
        "file": listener.file,
        "backlog": listener.backlog,
        "is given": listener.is_external,
        "failure": None if listener.failure is None else _failure(listener.failure),
    }


def _failure(failure: Failure) -> State:
    return {**asdict(failure), "address": _address(failure.address)}


def failure_of(passed: Mapping[str, Any]) -> Failure:
    """Return the failure that `_failure` has written."""
    code = ExitCode(passed["exit_code"])
    return Failure(**{**passed, "address": address_of(passed["address"]), "exit_code": code})


def _slot(slot: Slot, found: _Descriptors) -> State:
    child = slot.child
    return {
        "number": slot.number,
        "generation": slot.generation.number,
        "drains": slot.generation.drains,
        "kill at": slot.generation.kill_at,
        "pool": slot.pool.name,
        "is first": slot.is_first,
        "child": None
        if child is None
        else {
            "pid": child.pid,
            "channel": found.add(child.channel.fileno()),
            "lifeline": found.add(child.lifeline.reader),
            "output": None if child.output is None else found.add(child.output.reader),
            "started": child.started,
            "services": sorted(child.services),
            "ready": child.ready,
            "rows": child.rows,
            "files": [file._asdict() for file in child.files],
            "files since": child.files_since,
        },
    }


def _address(address: Address) -> State:
    return {**asdict(address), "transport": address.transport.value}


def address_of(passed: Mapping[str, Any]) -> Address:
    """Return the address that `_address` has written."""
    return Address(**{**passed, "transport": Transport(passed["transport"])})
