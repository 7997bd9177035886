"""Sorts services into pools, and finds the confinement that this superd can really apply.

Runs in the command line before it becomes the master, and in the master for a reload. Raises
NotPermitted if confinement is required and impossible, SuperdError if there is no user for workers
to run as.
"""

from __future__ import annotations

import itertools
import os
import pwd
import resource
from collections.abc import Container, Mapping
from dataclasses import dataclass

from superd.config.model import Confinement, Service, Settings
from superd.errors import NotPermitted, SuperdError
from superd.process.confinement import RLIMITS

NOBODY = "nobody"


@dataclass(frozen=True)
class Pool:
    """Services with the same confinement, and how many workers serve them. Services that fork have
    a pool of their own: a forked process has a copy of everything in its worker.
    """

    name: str
    confinement: Confinement
    services: Mapping[str, Service]
    workers: int


def pools_of(settings: Settings, services: Mapping[str, Service]) -> tuple[list[Pool], list[str]]:
    """Return the pools of `services`, and notices for the operator about their confinement."""
    is_root = os.geteuid() == 0
    left_out: dict[str, None] = {}
    groups: dict[tuple[Confinement, bool], dict[str, Service]] = {}
    for name, service in services.items():
        confinement = service.confinement
        if is_root:
            confinement = with_identity(confinement)
        else:
            left_out |= dict.fromkeys(_keys_of_root(confinement))
            confinement = _without_root(confinement)
        groups.setdefault((confinement, service.forks), {})[name] = service
    keys = ", ".join(left_out)
    if left_out and settings.daemon.confinement == "require":
        raise NotPermitted(f'confinement = "require", and superd is not root: cannot apply {keys}')
    workers = settings.daemon.workers
    count = _cores() if workers == "auto" else workers
    names: set[str] = set()
    pools = []
    for (confinement, forks), members in groups.items():
        name = _name(confinement, names, forks=forks)
        pools.append(Pool(name, confinement, members, 1 if forks else count))
        names.add(name)
    notices = []
    if left_out:
        notices.append(f"superd is not root, so it does not apply this confinement: {keys}")
    if roots := [name for pool in pools if pool.confinement.user == 0 for name in pool.services]:
        notices.append(f'user = "root", so these services keep every privilege: {", ".join(roots)}')
    return pools, notices


def _cores() -> int:
    """Return how many cores this process may use; a container often has only some."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def with_identity(confinement: Confinement) -> Confinement:
    """Fill in user and group for a worker started by root; "nobody" if the entry has no user."""
    user = nobody()[0] if confinement.user is None else confinement.user
    group = confinement.group
    if group is None:
        try:
            group = pwd.getpwuid(user).pw_gid
        except KeyError:
            group = user  # a number without a name: its group has the same number
    return confinement.model_copy(update={"user": user, "group": group})


def nobody() -> tuple[int, int]:
    """Return user and group of "nobody"."""
    try:
        entry = pwd.getpwnam(NOBODY)
        return entry.pw_uid, entry.pw_gid
    except KeyError:
        text = f'there is no user "{NOBODY}": set user = "..." in each service'
        raise SuperdError(text) from None


def _keys_of_root(confinement: Confinement) -> list[str]:
    """Return the keys that only root could apply."""
    keys = []
    if confinement.user not in (None, os.geteuid()):
        keys.append("user")
    if confinement.group not in (None, os.getegid()):
        keys.append("group")
    if confinement.groups:
        keys.append("groups")
    if confinement.chroot:
        keys.append("chroot")
    if _nice_too_low(confinement):
        keys.append("nice")
    return keys + [f"rlimits.{name.replace('_', '-')}" for name in _limits_too_high(confinement)]


def _without_root(confinement: Confinement) -> Confinement:
    """Return the confinement without the keys that only root could apply."""
    update: dict[str, object] = {"user": None, "group": None, "groups": (), "chroot": ""}
    if _nice_too_low(confinement):
        update["nice"] = 0
    left_out = dict.fromkeys(_limits_too_high(confinement))
    update["rlimits"] = confinement.rlimits.model_copy(update=left_out)
    return confinement.model_copy(update=update)


def _nice_too_low(confinement: Confinement) -> bool:
    """Return whether `nice` takes root. Any user may raise it; 0 means that it is not set."""
    return confinement.nice != 0 and confinement.nice < os.getpriority(os.PRIO_PROCESS, 0)


def _limits_too_high(confinement: Confinement) -> list[str]:
    """Return the names of limits above the hard limits of this process."""
    found = []
    for name, number in RLIMITS.items():
        wanted = getattr(confinement.rlimits, name)
        hard = resource.getrlimit(number)[1]
        if wanted is not None and hard != resource.RLIM_INFINITY and wanted > hard:
            found.append(name)
    return found


def _name(confinement: Confinement, taken: Container[str], *, forks: bool) -> str:
    """Return a name for the process list: the pool's own, its user's, or "default"."""
    name = confinement.pool or "default"
    if not confinement.pool and confinement.user is not None:
        try:
            name = pwd.getpwuid(confinement.user).pw_name
        except KeyError:
            name = str(confinement.user)
    name = f"{name}-fork" if forks else name
    numbered = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(candidate for candidate in numbered if candidate not in taken)
